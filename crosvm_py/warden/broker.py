# SPDX-License-Identifier: BSD-3-Clause
"""The broker of a device, seen from the warden: a second process, made and ended with the first.

The warden itself connects to nothing and reads nothing that the broker or the device says to the
other. It hands each of them an end of a channel, and keeps the directory of the sockets for the
next two.
"""

from __future__ import annotations

import os
import signal
from functools import partial

from jail.ids import IdMap
from jail.plan import device_jail
from sys_util import linux
from sys_util.channel import socket_pair
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from crosvm_py.kinds.kind import BrokerKind
    from crosvm_py.kinds.order import Connects
    from crosvm_py.kinds.policies import RunPolicies
    from jail.ids import Ids
    from jail.plan import JailPlan
    from sys_util.event_loop import EventLoop

log = get_logger("crosvm.warden")

# How long a broker may take to end after its device has.
END_SECONDS: Final = 1.0

_STDIO: Final = frozenset({0, 1, 2})


class Role(NamedTuple):
    """What a child of the warden is to be: its life, its jail, whose ids it has, how it is denied.

    ``denied_head`` is what the report of a denied system call begins with, on the first of the
    child's descriptors.
    """

    run: Callable[[socket.socket, list[int], JailPlan | None], int]
    jail: JailPlan | None
    denied_head: bytes
    owner: IdMap | None = None


class _Process:
    """A broker that has not been buried yet. Owns ``pidfd``."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.is_killed = False

    def kill(self) -> None:
        """Kill it, if it is still there."""
        if self.pidfd >= 0:
            self.is_killed = True
            linux.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def bury(self) -> int:
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
        kind: BrokerKind,
        connects: Connects,
        ids: Ids | None,
        directory_fd: int,
        loop: EventLoop,
    ) -> None:
        """Take up the broker of device ``name``; without a sandbox there are no ``ids``.

        In ``loop`` the end of a process is noticed.
        """
        self._name = name
        self._kind = kind
        self._connects = connects
        self._ids = ids
        self._directory_fd = directory_fd
        self._loop = loop
        self._processes: list[_Process] = []  # the last one is that of the present device

    def start(
        self,
        policies: RunPolicies | None,
        fork: Callable[[Role, list[int]], tuple[int, int]],
    ) -> int:
        """Make the process and return the device's end of the channel to it, the caller's.

        Args:
            policies: those of the run; ``None`` for ``--disable-sandbox``.
            fork: makes a child with these descriptors; returns its pid and a pidfd.

        Raises:
            HostError, OSError: the host does not let us; there is no process.
        """
        devices_end, brokers_end = socket_pair()
        fds = [brokers_end.fileno(), self._directory_fd]
        try:
            process = _Process(*fork(self._role(policies, fds), fds))
        except BaseException:
            devices_end.close()
            raise
        finally:
            brokers_end.close()
        self._processes.append(process)
        self._loop.add(process.pidfd, lambda _events: self._bury(process))
        return devices_end.detach()

    def let_go(self) -> None:
        """Expect the end of every process, which sees that of its device; a stuck one is killed."""
        for process in self._processes:
            self._loop.call_later(END_SECONDS, process.kill)

    def end(self) -> None:
        """Kill and bury every process; nothing of the device is left, and the loop runs no more."""
        for process in self._processes:
            process.kill()
            process.bury()

    def _role(self, policies: RunPolicies | None, fds: list[int]) -> Role:
        from importlib import import_module

        module = import_module(self._kind.module)  # which may have been read anew
        run = partial(module.run_broker, self._connects.name)
        owner = IdMap(self._connects.uid, self._connects.gid)
        jail = None
        if policies is not None and self._ids is not None:
            policy = policies.devices[self._kind.policy_name]
            jail = device_jail(
                policy_name=policy.name,
                bpf=policy.bpf,
                keep_fds=_STDIO.union(fds),
                max_file_bytes=0,
                ids=self._ids.of_user(owner).inside(),
                root_fd=self._directory_fd,
                recorder=policy.recorder,
                memory_bytes=0,
            )
        return Role(run, jail, module.BROKER_DENIED_HEAD, owner)

    def _bury(self, process: _Process) -> None:
        self._loop.remove(process.pidfd)
        self._processes.remove(process)
        status = process.bury()
        if status and not process.is_killed:  # else we wanted it, or it saw the end of its device
            how = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
            log.error("%s: its broker (pid %d): %s", self._name, process.pid, how)
