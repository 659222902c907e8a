# SPDX-License-Identifier: BSD-3-Clause
"""The broker of a device, as the warden sees it: a process that starts and ends with the device's.

The warden gives each of the two processes one end of a channel between them. It neither reads what
they send each other nor connects to any socket itself. It keeps a descriptor of the directory that
holds the sockets, for the next pair of processes.
"""

from __future__ import annotations

import os
import stat

from crosvm_py.kinds.order import NO_CONNECTS, Connects
from crosvm_py.kinds.table import DEVICE_KINDS
from jail.ids import IdMap
from sys_util import linux, signal
from sys_util.channel import socket_pair
from sys_util.errors import ProtocolError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.warden.protocol import Add
    from sys_util.event_loop import EventLoop

log = get_logger("crosvm.warden")

# The most time that a broker may take to end after its device has ended.
END_SECONDS: Final = 1.0


class _Process:
    """A broker that has not been reaped yet. Owns ``pidfd``."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.is_killed = False

    def kill(self) -> None:
        """Kill it, unless it has been reaped."""
        if self.pidfd >= 0:
            self.is_killed = True
            linux.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end; return its status as ``os.waitstatus_to_exitcode`` does."""
        _, wait_status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pidfd = -1
        return os.waitstatus_to_exitcode(wait_status)


class Broker:
    """The broker of one device, through all restarts. Owns the directory's descriptor."""

    def __init__(
        self,
        name: str,
        connects: Connects,
        directory_fd: int,
        loop: EventLoop,
    ) -> None:
        """``name`` is the device's; ``loop`` watches for the end of processes."""
        self._name = name
        self._connects = connects
        self._directory_fd = directory_fd
        self._loop = loop
        self._processes: list[_Process] = []  # the last one belongs to the device's present process
        self.on_reaped: Callable[[], None] = lambda: None  # called when one of them has ended

    @property
    def owner(self) -> IdMap:
        """User and group that its processes have on the host."""
        return IdMap(self._connects.uid, self._connects.gid)

    def open_fds(self) -> tuple[list[int], int]:
        """Return the descriptors for one broker process, and the device's end of its channel.

        The caller owns all of them.

        Raises:
            OSError: the host refuses it.
        """
        devices_end, brokers_end = socket_pair()
        with devices_end, brokers_end:
            directory = os.dup(self._directory_fd)
            return [brokers_end.detach(), directory], devices_end.detach()

    def adopt(self, pid: int, pidfd: int) -> None:
        """Take over the process that was made with these descriptors; owns ``pidfd`` from now."""
        process = _Process(pid, pidfd)
        self._processes.append(process)
        self._loop.add(process.pidfd, lambda _events: self._reap(process))

    def knows(self, pid: int) -> bool:
        """Return whether ``pid`` is one of the broker's processes that is not reaped yet."""
        return any(process.pid == pid for process in self._processes)

    @property
    def has_processes(self) -> bool:
        """Whether a process is left."""
        return bool(self._processes)

    def close(self) -> None:
        """Close the directory: no further process is made."""
        os.close(self._directory_fd)
        self._directory_fd = -1

    def let_go(self) -> None:
        """Let every process end, since its device has ended; kill it after ``END_SECONDS``."""
        for process in self._processes:
            self._loop.call_later(END_SECONDS, process.kill)

    def kill(self) -> None:
        """Kill every process. The caller reaps them and does not run the loop again."""
        for process in self._processes:
            process.kill()

    def _reap(self, process: _Process) -> None:
        self._loop.remove(process.pidfd)
        self._processes.remove(process)
        status = process.reap()
        if status and not process.is_killed:  # otherwise we killed it, or it ended with its device
            how = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
            log.error("%s: its broker (pid %d): %s", self._name, process.pid, how)
        self.on_reaped()


def owner_of(order: Add, fds: list[int]) -> Connects:
    """Return what the broker of a device connects to, if it has one; it is the directory's owner.

    The opener is not asked whose ids the broker gets.
    """
    if DEVICE_KINDS[order.kind].broker is None or not fds:
        return NO_CONNECTS
    found = os.fstat(fds[-1])
    if not stat.S_ISDIR(found.st_mode):
        raise ProtocolError(f"{order.name}: its last descriptor is no directory")
    return Connects(order.connects.name, found.st_uid, found.st_gid)
