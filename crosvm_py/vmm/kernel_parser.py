# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of the process that reads the kernel file: its start, its answer, its end.

The file is not trusted, and C libraries unpack it, so the vmm does not parse it. A confined child
does (``crosvm_py/file_parser/process.py``) while the vmm goes on importing modules. The answer is
not trusted either. The vmm copies the initrd and the kernel's segments without looking into them.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from contextlib import ExitStack

from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.file_parser import protocol
from crosvm_py.leaving import end_fault_handler
from kernel_loader.image import MAX_UNPACKED_BYTES, KernelImage, ParsedKernel
from kernel_loader.source import FileSource
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

    from crosvm_py.config import RunConfig
    from jail.plan import JailPlan
    from seccomp import Policy
    from sys_util.wire import Message

log = logging.get_logger("crosvm.kernel")

POLICY_NAME: Final = "file_parser"

# The most time for the answer. It includes the time that the host needs to read the file.
DEADLINE_SECONDS: Final = 2.0 * protocol.MAX_PROCESSOR_SECONDS

# Beside the payload, which is read as a whole: Python, its inherited memory, and the dictionary
# of a decompressor.
_MAX_OTHER_DATA_BYTES: Final = 448 << 20

# Once the vmm has accepted the unpacked kernel, nobody may change it.
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class KernelParser:
    """A process that reads a kernel. Owns it, its channel and both files; close it once."""

    def __init__(
        self,
        source: FileSource,
        unpacked_fd: int,
        channel: Channel,
        pid: int,
    ) -> None:
        """Take all of them over; ``unpacked_fd`` can be sealed."""
        self._source = source
        self._unpacked_fd = unpacked_fd
        self._channel = channel
        self._pid = pid
        self._killed = False

    def image(self, deadline_seconds: float = DEADLINE_SECONDS) -> KernelImage:
        """Wait for the answer and return the kernel, which owns the file that contains it.

        The process is reaped later, by ``close``.

        Raises:
            ConfigError: the file is no kernel for this machine, is damaged, or crashes the parser.
            HostError: the host cannot read it.
            VmmError: the parser has a bug, or broke the protocol.
        """
        what = self._source.what
        try:
            answer = self._wait(time.monotonic() + deadline_seconds)
            # The process has nothing left to do. Waiting for its exit would delay every start.
            self._kill()
            match answer:
                case protocol.Parsed(kernel):
                    return self._make_image(kernel)
                case protocol.Refused(reason):
                    raise ConfigError(f"{what}{reason}")
                case protocol.HostFailed(operation, target, number, hint):
                    target = target if what in target else f"{target}, to read {what}"
                    error = OSError(number, os.strerror(number))
                    raise_host_error(operation, target, error, hint)
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
                case _:
                    raise ProtocolError(f"an unexpected {type(answer).__name__}")
        except ChannelClosed:
            raise ConfigError(f"{what}: {_describe_end(self._end())}") from None
        except ProtocolError as error:
            reason = f"{what}: the process that reads it made no sense: {error}"
            raise ProtocolError(reason) from error

    def close(self) -> None:
        """End the process, if it has not ended, and close everything that is left."""
        self._end()
        self._channel.close()
        self._source.close()
        if self._unpacked_fd >= 0:
            os.close(self._unpacked_fd)
            self._unpacked_fd = -1

    def _wait(self, deadline: float) -> Message:
        limit = logging.LineLimit(protocol.MAX_LINES, float("inf"))
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0:
                self._end()
                raise ConfigError(f"{self._source.what}: could not be read in time")
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

    def _make_image(self, kernel: ParsedKernel) -> KernelImage:
        """Check the parser's answer; the image takes over the file that contains the kernel."""
        source = self._source
        if kernel.unpacked_bytes:
            fcntl.fcntl(self._unpacked_fd, fcntl.F_ADD_SEALS, _SEALS)
            if os.fstat(self._unpacked_fd).st_size < kernel.unpacked_bytes:
                raise ProtocolError(f"{kernel.unpacked_bytes:#x} unpacked bytes that are not there")
            name = f"{source.what} ({kernel.kind.rpartition(' ')[2]} payload)"
            source = FileSource(name, self._unpacked_fd, kernel.unpacked_bytes)
        image = KernelImage(source, kernel)
        if source is self._source:
            self._source = FileSource(source.what, -1, 0)
        else:
            self._unpacked_fd = -1
        return image


def start_kernel_parser(config: RunConfig) -> KernelParser:
    """Fork the process that reads the kernel of a run; the caller has one thread.

    Raises:
        ConfigError: the kernel is no regular file, or empty.
        HostError: the host refuses to open it, or to fork.
    """
    if config.sandbox:
        # Before the fork, so that it is imported once: the warden and the vmm need it, too.
        import jail.plan  # noqa: F401
    with ExitStack() as undo:
        source = FileSource.open(
            "kernel", config.kernel, follow=config.kernel not in config.guest_files
        )
        undo.callback(source.close)
        try:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            unpacked_fd = os.memfd_create("crosvm_kernel", flags)
            undo.callback(os.close, unpacked_fd)
            ours, theirs = socket_pair()
            undo.callback(ours.close)
            with theirs:
                pid = os.fork()
                if pid == 0:
                    _be_parser(config, theirs.fileno(), source, unpacked_fd)
        except OSError as error:
            raise_host_error("start", f"a process that reads {source.what}", error)
        undo.pop_all()
    return KernelParser(source, unpacked_fd, Channel(ours, protocol.CODEC), pid)


def load_parser_policy(config: RunConfig) -> Policy | None:
    """Return the parser's seccomp policy; ``None`` for ``--disable-sandbox``.

    It is always the program's own, whatever ``--seccomp-policy-dir`` says: that option is for the
    policies of processes that serve a guest.

    Raises:
        PolicyError: it cannot be used.
    """
    if not config.sandbox:
        return None
    return load_policy(POLICY_NAME, log_failures=config.seccomp_log_failures)


def _be_parser(config: RunConfig, sock_fd: int, source: FileSource, unpacked_fd: int) -> NoReturn:
    status = EXIT_BUG
    try:
        end_fault_handler()
        leave_warnings_to_others()
        from crosvm_py.file_parser.process import run_parser

        def make_jail() -> JailPlan | None:
            return _jail(config, {sock_fd, source.fd, unpacked_fd}, source.size)

        run_parser(sock_fd, source, unpacked_fd, make_jail)
        status = 0
    finally:
        os._exit(status)


def _jail(config: RunConfig, keep_fds: set[int], source_bytes: int) -> JailPlan | None:
    policy = load_parser_policy(config)
    if policy is None:
        return None
    # Imported here, in the child, so that the vmm forks the warden without waiting for it.
    from jail.plan import parser_jail

    return parser_jail(
        policy,
        keep_fds=keep_fds,
        max_seconds=protocol.MAX_PROCESSOR_SECONDS,
        max_data_bytes=_MAX_OTHER_DATA_BYTES + min(source_bytes, MAX_UNPACKED_BYTES),
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
