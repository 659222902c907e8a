# SPDX-License-Identifier: BSD-3-Clause
"""The process that reads a kernel file and sends the vmm one answer.

It has the file, an empty file to unpack the kernel into, and a socket to the vmm. First it reads
the magic numbers of the file to find out which modules it needs, and imports them. Then it enters
its jail and loads its filter, and only then it reads the rest of the file.
"""

from __future__ import annotations

import os

from crosvm_py import bundle
from crosvm_py.file_parser import protocol
from kernel_loader.parse import import_unpacker, parse_kernel
from sys_util import linux, log
from sys_util.crash import crash_report
from sys_util.errors import ConfigError, HostError
from sys_util.typing import TYPE_CHECKING
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from jail.plan import JailPlan
    from kernel_loader.source import FileSource
    from sys_util.wire import Message


def run_parser(
    sock_fd: int,
    source: FileSource,
    unpacked_fd: int,
    make_jail: Callable[[], JailPlan | None],
) -> None:
    """Read ``source`` and send the result to the vmm, at the other end of ``sock_fd``.

    ``make_jail`` returns ``None`` for ``--disable-sandbox``.
    """

    def say(message: Message) -> None:
        # Not through a Channel: that uses sendmsg, which the filter would have to allow, and which
        # could name another receiver.
        os.write(sock_fd, encode(message))

    try:
        log.set_sink(lambda level, module, line: say(protocol.Line(level, module, line)))
        say(_answer(sock_fd, source, unpacked_fd, make_jail))
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        say(protocol.Crashed(crash_report(error)[-protocol.MAX_REASON_CHARS :]))


def _answer(
    sock_fd: int,
    source: FileSource,
    unpacked_fd: int,
    make_jail: Callable[[], JailPlan | None],
) -> Message:
    try:
        jail = make_jail()
        import_unpacker(source)
        bundle.drop()
        if jail is not None:
            jail.enter()
            linux.report_denied_calls(sock_fd, protocol.CALL_DENIED_HEAD)
            jail.load_filter()
        return protocol.Parsed(parse_kernel(source, unpacked_fd))
    except ConfigError as error:
        text = str(error)
        reason = text.removeprefix(source.what)
        if reason == text:  # the message does not begin with the name of the file
            reason = f": {text}"
        return protocol.Refused(reason[: protocol.MAX_REASON_CHARS])
    except MemoryError:
        return protocol.Refused(": needs more memory than reading a kernel may take")
    except HostError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or not cause.errno:
            raise
        return protocol.HostFailed(
            error.operation,
            error.target[: protocol.MAX_REASON_CHARS],
            cause.errno,
            error.hint[: protocol.MAX_REASON_CHARS],
        )
