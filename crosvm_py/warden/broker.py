# SPDX-License-Identifier: BSD-3-Clause
"""The broker of a device, seen from the warden: a second process, made and ended with the first.

The warden itself connects to nothing and reads nothing that the broker or the device says to the
other. It hands each of them an end of a channel, and keeps the directory of the sockets for the
next two.
"""

from __future__ import annotations

import os
import signal

from jail.ids import IdMap
from sys_util import linux
from sys_util.channel import socket_pair
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.kinds.order import Connects
    from sys_util.event_loop import EventLoop

log = get_logger("crosvm.warden")

# How long a broker may take to end after its device has.
END_SECONDS: Final = 1.0


class _Process:
    """A broker that has not been reaped yet. Owns ``pidfd``."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.is_killed = False

    def kill(self) -> None:
        """Kill it, if it is still there."""
        if self.pidfd >= 0:
            self.is_killed = True
            linux.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end and return how it came: as ``os.waitstatus_to_exitcode`` says it."""
        _, wait_status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pidfd = -1
        return os.waitstatus_to_exitcode(wait_status)


class Broker:
    """The broker of one device, whichever process that has. Owns the directory's descriptor."""

    def __init__(
        self,
        name: str,
        connects: Connects,
        directory_fd: int,
        loop: EventLoop,
    ) -> None:
        """``name`` is the device's; in ``loop`` the end of a process is noticed."""
        self._name = name
        self._connects = connects
        self._directory_fd = directory_fd
        self._loop = loop
        self._processes: list[_Process] = []  # the last one is that of the present device

    @property
    def owner(self) -> IdMap:
        """Whose ids its processes have."""
        return IdMap(self._connects.uid, self._connects.gid)

    def open_fds(self) -> tuple[list[int], int]:
        """Return the descriptors of one process, then the device's end of the channel to it.

        All of them are the caller's.

        Raises:
            OSError: the host does not let us.
        """
        devices_end, brokers_end = socket_pair()
        with devices_end, brokers_end:
            directory = os.dup(self._directory_fd)
            return [brokers_end.detach(), directory], devices_end.detach()

    def adopt(self, pid: int, pidfd: int) -> None:
        """Have the process that was made with these descriptors; ``pidfd`` becomes ours."""
        process = _Process(pid, pidfd)
        self._processes.append(process)
        self._loop.add(process.pidfd, lambda _events: self._reap(process))

    def knows(self, pid: int) -> bool:
        """Return whether ``pid`` is one of ours that is not reaped yet."""
        return any(process.pid == pid for process in self._processes)

    def let_go(self) -> None:
        """Expect the end of every process, which sees that of its device; a stuck one is killed."""
        for process in self._processes:
            self._loop.call_later(END_SECONDS, process.kill)

    def kill(self) -> None:
        """Kill every process; the caller reaps them, and the loop runs no more."""
        for process in self._processes:
            process.kill()

    def _reap(self, process: _Process) -> None:
        self._loop.remove(process.pidfd)
        self._processes.remove(process)
        status = process.reap()
        if status and not process.is_killed:  # else we wanted it, or it saw the end of its device
            how = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
            log.error("%s: its broker (pid %d): %s", self._name, process.pid, how)
