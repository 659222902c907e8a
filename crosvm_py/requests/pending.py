# SPDX-License-Identifier: BSD-3-Clause
"""``Pending``, an answer that comes later, and the type of request handlers."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.requests.protocol import Request, Response


class Pending:
    """An answer that will be known later. Use it in the thread of the event loop only."""

    def __init__(self) -> None:
        self._response: Response | None = None
        self._deliver: Callable[[Response], None] | None = None

    def complete(self, response: Response) -> None:
        """Give the answer; only the first one counts."""
        if self._response is not None:
            return
        self._response = response
        if self._deliver is not None:
            self._deliver(response)

    def deliver_to(self, deliver: Callable[[Response], None]) -> None:
        """Call ``deliver`` with the answer, at once if it is known already."""
        self._deliver = deliver
        if self._response is not None:
            deliver(self._response)


# If it raises a VmmError, the client gets that as the answer.
Handler: TypeAlias = "Callable[[Request], Response | Pending]"
