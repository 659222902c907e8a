# SPDX-License-Identifier: BSD-3-Clause
"""The process that reads one file from outside and sends one answer to the one that made it.

It imports what it needs, enters its jail, loads its filter, and only then it reads the file: it can
read and write the descriptors that it has, use memory, and nothing else.
"""

from __future__ import annotations

import os

from crosvm_py import bundle
from crosvm_py.file_parser import protocol
from sys_util import linux, log
from sys_util.crash import crash_report
from sys_util.errors import ConfigError, HostError
from sys_util.typing import TYPE_CHECKING, Protocol
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from jail.plan import JailPlan
    from sys_util.wire import Message


class Job(Protocol):
    """One file, and how it is read."""

    @property
    def what(self) -> str:
        """The name of the file in messages, which begin with it."""
        ...

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the process keeps."""
        ...

    @property
    def size_bytes(self) -> int:
        """How large the file is: so much memory the process gets beside the usual."""
        ...

    def prepare(self) -> None:
        """Import what ``work`` needs; the process is not confined yet."""
        ...

    def work(self) -> Message:
        """Read the file and return the answer.

        Raises:
            ConfigError: the file is not what it should be.
            HostError: the host cannot read it.
        """
        ...


def run_parser(sock_fd: int, job: Job, make_jail: Callable[[], JailPlan | None]) -> None:
    """Do a job and send the result to the process at the other end of ``sock_fd``.

    ``make_jail`` returns ``None`` for ``--disable-sandbox``.
    """

    def say(message: Message) -> None:
        # Not through a Channel: that uses sendmsg, which the filter would have to allow, and which
        # could name another receiver.
        os.write(sock_fd, encode(message))

    try:
        log.set_sink(lambda level, module, line: say(protocol.Line(level, module, line)))
        say(_answer(sock_fd, job, make_jail))
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        say(protocol.Crashed(crash_report(error)[-protocol.MAX_REASON_CHARS :]))


def _answer(sock_fd: int, job: Job, make_jail: Callable[[], JailPlan | None]) -> Message:
    try:
        jail = make_jail()
        job.prepare()
        bundle.drop()
        if jail is not None:
            jail.enter()
            linux.report_denied_calls(sock_fd, protocol.CALL_DENIED_HEAD)
            jail.load_filter()
        return job.work()
    except ConfigError as error:
        text = str(error)
        reason = text.removeprefix(job.what)
        if reason == text:  # the message does not begin with the name of the file
            reason = f": {text}"
        return protocol.Refused(reason[: protocol.MAX_REASON_CHARS])
    except MemoryError:
        return protocol.Refused(": needs more memory than reading it may take")
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
