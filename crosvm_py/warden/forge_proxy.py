# SPDX-License-Identifier: BSD-3-Clause
"""The warden's side of its forge, and its record of each mould."""

from __future__ import annotations

import os

from crosvm_py.warden.forge_protocol import FROM_FORGE_CODEC, Execute, ForgeDenied
from seccomp import syscall_name
from sys_util import linux, signal
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, VmmError, describe, remedy_for
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from crosvm_py.warden.forge import ForgeProcess
    from crosvm_py.warden.protocol import Spawn
    from jail.ids import IdMap
    from sys_util.event_loop import EventLoop, Timer

log = get_logger("crosvm.warden")

# Called with the new pid, a pidfd that the callee then owns, and ""; or with 0, -1 and a reason.
CastResult: TypeAlias = "Callable[[int, int, str], None]"


def reason_for(error: VmmError | OSError) -> str:
    """Return why something cannot be made, short enough for a message of the protocol."""
    if isinstance(error, OSError):
        return f"{error.strerror}{remedy_for(error)}"[:1024]
    return describe(error)[:1024]


def describe_end(wait_status: int) -> str:
    """Say how a process ended."""
    status = os.waitstatus_to_exitcode(wait_status)
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def describe_denied(number: int) -> str:
    """Say what ended a mould that was denied a system call.

    It has the filter of the forge, which lets the forge alone send itself a signal. So abort(3)
    in a mould, as CPython and glibc call it for a fatal error, ends with this call.
    """
    name = syscall_name(number)
    if name == "tgkill":
        return f"aborted (abort(3) calls {name} ({number}), which policy forge denies it)"
    return f"was killed by seccomp: {name} ({number})"


class Casting(NamedTuple):
    """One process to be made.

    ``ids`` returns the process's ids on the host for its pid (0 if not known yet); ``None`` without
    a sandbox, where the process keeps our ids. ``fds`` begin with the cgroup's directory if
    ``in_cgroup``, and are closed once they have been sent to the mould.
    """

    order: Spawn
    as_broker: bool
    ids: Callable[[int], IdMap] | None
    in_cgroup: bool
    fds: list[int]
    then: CastResult

    def close(self) -> None:
        """Close the descriptors, once."""
        while self.fds:
            os.close(self.fds.pop())


class Mould:
    """One mould, from the request for it until it is reaped.

    Owns the channel, the pidfd and ``go_fd``, and until the forge is asked the mould's own end of
    the channel.
    """

    def __init__(
        self, channel: Channel, its_end: socket.socket, kinds: frozenset[str] = frozenset()
    ) -> None:
        self.channel = channel
        self.its_end = its_end
        self.kinds = kinds  # what devices it can make
        self.is_open = True  # the channel
        self.pid = 0
        self.pidfd = -1
        self.is_loaded = False
        self.is_unwanted = False
        self.casting: Casting | None = None
        self.holds = -1  # the device whose descriptors it was sent; it has them until it ends
        self.go_fd = -1  # the pipe for the byte that its process waits for
        self.renewal: Callable[[str], None] | None = None
        self.reason = ""  # why it has failed
        self.timer: Timer | None = None  # the deadline of its present step

    def stop_waiting(self) -> None:
        """Cancel the deadline: the mould has done its step, or has failed."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def kill(self) -> None:
        """Kill it, unless its pid is unknown yet or it has been reaped."""
        if self.pidfd >= 0:
            linux.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close_go(self) -> None:
        """Close the pipe for the byte; a process that still waits on it ends by itself."""
        if self.go_fd >= 0:
            os.close(self.go_fd)
            self.go_fd = -1


class Forge:
    """The forge, and how it ended if it did. Owns the descriptors of ``ForgeProcess``."""

    def __init__(self, loop: EventLoop, process: ForgeProcess, on_end: Callable[[], None]) -> None:
        """``on_end`` is called when the forge has ended."""
        self.pid = process.pid
        self.end = ""  # how it ended; "" while it lives
        self._loop = loop
        self._pidfd = process.pidfd
        self._channel = Channel(process.sock, FROM_FORGE_CODEC)
        self._on_end = on_end
        loop.add(self._pidfd, lambda _events: self._reap())

    def execute(self, fd: int) -> None:
        """Ask for a mould; ``fd`` is the mould's end of its channel, and the caller keeps it.

        Raises:
            VmmError: the forge has ended, or takes no messages.
        """
        if self.end:
            raise VmmError(f"no new process: the forge {self.end}")
        try:
            self._channel.send(Execute(), [fd])
        except (ChannelClosed, VmmError) as error:
            raise VmmError("no new process: the forge does not hear") from error

    def kill(self) -> None:
        """Kill the forge; the warden is about to end."""
        if not self.end:
            linux.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._channel.close()

    def _reap(self) -> None:
        self._loop.remove(self._pidfd)
        os.close(self._pidfd)
        _, wait_status = os.waitpid(self.pid, 0)
        self.end = self._describe_denied_call() or describe_end(wait_status)
        log.error("forge (pid %d): %s; no device process is made again", self.pid, self.end)
        self._on_end()

    def _describe_denied_call(self) -> str:
        try:
            received = self._channel.receive()
        except (ChannelClosed, VmmError):
            return ""
        if received is None or not isinstance(received[0], ForgeDenied):
            return ""
        number = received[0].number
        return f"was killed by seccomp: {syscall_name(number)} ({number}), policy forge"
