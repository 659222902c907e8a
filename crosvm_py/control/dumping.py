# SPDX-License-Identifier: BSD-3-Clause
"""Dump the VM into a core file: the control process's part, which is to ask the others.

The opener makes the file, the vmm writes it. The vmm is asked before whether it can, so that no
file is made for nothing.
"""

from __future__ import annotations

import os

from crosvm_py.requests.core_dump import MayDump, WriteCore, path_fault
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Failed
from sys_util.errors import ConfigError, VmmError, describe
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.api.vm import Ask
    from crosvm_py.requests.core_dump import DumpCore
    from crosvm_py.requests.protocol import Response


class Dumping:
    """Serves ``DumpCore``, one at a time."""

    def __init__(self, ask: Ask, make: Callable[[bytes, Callable[[str, int], None]], None]) -> None:
        """``ask`` passes a request on to the vmm, and ``make`` has the opener make a file.

        Each may raise a ``VmmError``. What ``make`` calls gets a reason why there is no file, or
        its descriptor, which it owns.
        """
        self._ask = ask
        self._make = make
        self._path = b""
        self._answer: Pending | None = None  # to the client, while there is a dump

    def dump(self, request: DumpCore) -> Pending:
        """Dump the VM. The answer is ``Done`` or ``Failed``.

        Raises:
            ConfigError: there can be no such file, or there is another dump.
            VmmError: the VM takes no more requests now.
        """
        fault = path_fault(request.path)
        if fault:
            raise ConfigError(f"{_text(request.path):.200}: {fault}")
        if self._answer is not None:
            raise ConfigError("another core dump is under way")
        asked = self._ask(MayDump())
        self._path = request.path
        self._answer = answer = Pending()
        asked.deliver_to(self._on_allowed)
        return answer

    def _on_allowed(self, response: Response) -> None:
        if isinstance(response, Failed):
            self._finish(response)
            return
        try:
            self._make(self._path, self._on_made)
        except VmmError as error:
            self._finish(Failed(describe(error)[:MAX_REASON_CHARS]))

    def _on_made(self, reason: str, fd: int) -> None:
        if reason:
            self._finish(Failed(reason[:MAX_REASON_CHARS]))
            return
        try:
            written = self._ask(WriteCore(), (fd,))
        except VmmError as error:
            self._on_written(Failed(describe(error)[:MAX_REASON_CHARS]))
        else:
            written.deliver_to(self._on_written)
        finally:
            os.close(fd)

    def _on_written(self, response: Response) -> None:
        if isinstance(response, Failed):
            line = f"{_text(self._path)}: {response.reason}; the file is left empty"
            response = Failed(line[-MAX_REASON_CHARS:])
        self._finish(response)

    def _finish(self, response: Response) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.complete(response)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
