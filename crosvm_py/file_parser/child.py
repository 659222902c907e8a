# SPDX-License-Identifier: BSD-3-Clause
"""The side of the one that has a file read: the process's start, its answer, its end.

The file is not trusted, so whoever needs it does not parse it. A confined child does
(``crosvm_py/file_parser/process.py``). Its answer is not trusted either.
"""

from __future__ import annotations

import os
import select
import time

from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.file_parser import protocol
from crosvm_py.leaving import end_fault_handler
from kernel_loader.image import MAX_UNPACKED_BYTES
from seccomp import load_policy, syscall_name
from seccomp.cache import leave_warnings_to_others
from sys_util import log as logging
from sys_util import signal
from sys_util.channel import Channel, socket_pair
from sys_util.errors import (
    ChannelClosed,
    ConfigError,
    ProtocolError,
    VmmError,
    raise_host_error,
)
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import NoReturn

    from crosvm_py.file_parser.process import Job
    from jail.plan import JailPlan
    from seccomp import Policy
    from sys_util.wire import Message

log = logging.get_logger("crosvm.file_parser")

POLICY_NAME: Final = "file_parser"

# The most time for the answer. It includes the time that the host needs to read the file.
DEADLINE_SECONDS: Final = 2.0 * protocol.MAX_PROCESSOR_SECONDS

# Beside the file, which is read as a whole: Python, its inherited memory, and the dictionary of a
# decompressor.
_MAX_OTHER_DATA_BYTES: Final = 448 << 20


class FileParser:
    """A process that reads one file. Owns it and its channel; close it once."""

    def __init__(self, what: str, channel: Channel, pid: int) -> None:
        """Take both over; ``what`` is the name of the file in messages."""
        self._what = what
        self._channel = channel
        self._pid = pid
        self._killed = False

    def answer(self, deadline_seconds: float = DEADLINE_SECONDS) -> Message:
        """Wait for the answer and return it, unless it is that the file cannot be used.

        The process is killed then, and reaped later, by ``close``.

        Raises:
            ConfigError: the file is not what it should be, or crashes the process.
            HostError: the host cannot read it.
            VmmError: the process has a bug, or broke the protocol.
        """
        what = self._what
        try:
            answer = self._wait(time.monotonic() + deadline_seconds)
        except ChannelClosed:
            raise ConfigError(f"{what}: {_describe_end(self._end())}") from None
        except ProtocolError as error:
            raise self.nonsense(error) from error
        # The process has nothing left to do. Waiting for its exit would delay every start.
        self._kill()
        match answer:
            case protocol.Refused(reason):
                raise ConfigError(f"{what}{reason}")
            case protocol.HostFailed(operation, target, number, hint):
                target = target if what in target else f"{target}, to read {what}"
                cause = OSError(number, os.strerror(number))
                raise_host_error(operation, target, cause, hint)
            case protocol.CallDenied(number):
                call = f"{syscall_name(number)} ({number})"
                raise ConfigError(
                    f"{what}: the process that reads it was killed by seccomp: "
                    f"{call}, policy {POLICY_NAME}"
                )
            case protocol.Crashed(report):
                for line in report.splitlines():
                    log.error("%s", line)
                raise VmmError(f"{what}: the process that reads it failed, please report it")
        return answer

    def nonsense(self, why: object) -> ProtocolError:
        """Return the error for an answer that cannot be true."""
        return ProtocolError(f"{self._what}: the process that reads it made no sense: {why}")

    def close(self) -> None:
        """End the process, if it has not ended, and close the channel."""
        self._end()
        self._channel.close()

    def _wait(self, deadline: float) -> Message:
        limit = logging.LineLimit(protocol.MAX_LINES, float("inf"))
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0:
                self._end()
                raise ConfigError(f"{self._what}: could not be read in time")
            poll.poll(left_ms)
            received = self._channel.receive()
            if received is None:
                continue
            message, fds = received
            for fd in fds:
                os.close(fd)
            if not isinstance(message, protocol.Line):
                return message
            logging.emit(message.level, message.module, message.line, limit)

    def _end(self) -> int:
        """Kill and reap the process; return its status as ``os.waitstatus_to_exitcode`` does."""
        if not self._pid:
            return 0
        self._kill()  # no effect if it has exited
        _, wait_status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(wait_status)

    def _kill(self) -> None:
        """Kill it, once: a second kill would come when the vmm's filter allows none any more."""
        if not self._killed:
            self._killed = True
            os.kill(self._pid, signal.SIGKILL)


def start_parser(job: Job, *, sandbox: bool = True, log_failures: bool = False) -> FileParser:
    """Fork the process that reads a file; the caller has one thread.

    Raises:
        HostError: the host refuses to fork.
    """
    if sandbox:
        # Before the fork, so that it is imported once: the warden and the vmm need it, too.
        import jail.plan  # noqa: F401
    try:
        ours, theirs = socket_pair()
        try:
            with theirs:
                pid = os.fork()
                if pid == 0:
                    _be_parser(theirs.fileno(), job, sandbox=sandbox, log_failures=log_failures)
        except BaseException:
            ours.close()
            raise
    except OSError as error:
        raise_host_error("start", f"a process that reads {job.what}", error)
    return FileParser(job.what, Channel(ours, protocol.CODEC), pid)


def load_parser_policy(*, sandbox: bool, log_failures: bool) -> Policy | None:
    """Return the process's seccomp policy; ``None`` for ``--disable-sandbox``.

    It is always the program's own, whatever ``--seccomp-policy-dir`` says: that option is for the
    policies of processes that serve a guest.

    Raises:
        PolicyError: it cannot be used.
    """
    return load_policy(POLICY_NAME, log_failures=log_failures) if sandbox else None


def _be_parser(sock_fd: int, job: Job, *, sandbox: bool, log_failures: bool) -> NoReturn:
    status = EXIT_BUG
    try:
        end_fault_handler()
        leave_warnings_to_others()
        from crosvm_py.file_parser.process import run_parser

        def make_jail() -> JailPlan | None:
            policy = load_parser_policy(sandbox=sandbox, log_failures=log_failures)
            return None if policy is None else _jail(policy, {sock_fd, *job.fds}, job.size_bytes)

        run_parser(sock_fd, job, make_jail)
        status = 0
    finally:
        os._exit(status)


def _jail(policy: Policy, keep_fds: set[int], size_bytes: int) -> JailPlan:
    # Imported here, in the child, so that the vmm forks the warden without waiting for it.
    from jail.plan import parser_jail

    return parser_jail(
        policy,
        keep_fds=keep_fds,
        max_seconds=protocol.MAX_PROCESSOR_SECONDS,
        max_data_bytes=_MAX_OTHER_DATA_BYTES + min(size_bytes, MAX_UNPACKED_BYTES),
        max_file_bytes=MAX_UNPACKED_BYTES,
    )


def _describe_end(status: int) -> str:
    """Say why a process ended without an answer."""
    if status == -signal.SIGXCPU:
        return f"takes more than {protocol.MAX_PROCESSOR_SECONDS} s of processor time to read"
    if status == -signal.SIGKILL:
        return "the process that reads it was killed, perhaps for lack of memory"
    how = f"exit status {status}"
    if status < 0:
        how = signal.signal_name(-status)
    return f"crashes the process that reads it ({how}): it is damaged, or made to do harm"
