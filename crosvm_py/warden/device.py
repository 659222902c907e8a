# SPDX-License-Identifier: BSD-3-Clause
"""One device, as the warden sees it: what its processes are made from, and its present process."""

from __future__ import annotations

import contextlib
import os

from crosvm_py.kinds.cgroup import file_memory
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.warden.forge_proxy import Casting, reason_for
from crosvm_py.warden.socket_files import socket_files
from sys_util.channel import socket_pair
from sys_util.errors import HostError
from sys_util.facts import fields_of
from sys_util.typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crosvm_py.kinds.cgroup import DeviceLimits
    from crosvm_py.warden.broker import Broker
    from crosvm_py.warden.forge_proxy import CastResult
    from crosvm_py.warden.foundry import Foundry
    from crosvm_py.warden.protocol import Spawn
    from jail.ids import IdMap, Ids
    from sys_util import socket

# Called with the vmm's end of the channel, which the callee then owns, and ""; or with ``None``
# and the reason why there is no process.
RemakeResult: TypeAlias = "Callable[[socket.socket | None, str], None]"


class Device:
    """What a device's processes are made from, and its present process. Owns its descriptors."""

    def __init__(
        self, order: Spawn, fds: list[int], limits: DeviceLimits, broker: Broker | None
    ) -> None:
        self.broker = broker
        self.socket_files = socket_files(fds)
        self.limits = limits
        self.fds = fds
        self.max_file_bytes = order.max_file_bytes
        self.pid = 0
        self.pidfd = -1
        self.is_remade = False  # its next process is being made
        self.had_process = False
        self.is_forgotten = False  # it gets no further process
        self._order = order

    @property
    def is_gone(self) -> bool:
        """Whether it was forgotten, and no process of it is left or being made."""
        has_broker = self.broker is not None and self.broker.has_processes
        return self.is_forgotten and not (self.pid or self.is_remade or has_broker)

    def close(self) -> None:
        """Close the descriptors, remove its group and the files of its sockets."""
        self.remove_socket_files()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self.broker is not None:
            self.broker.close()
        self.limits.remove()

    def remove_socket_files(self) -> None:
        """Remove the files at which its sockets listen."""
        for file in self.socket_files:
            file.remove()

    @property
    def order(self) -> Spawn:
        """The order to make the next process, with the present bound of its file."""
        fields = fields_of(self._order) | {"max_file_bytes": self.max_file_bytes}
        return type(self._order)(**fields)  # type: ignore[arg-type]  # its own fields

    @property
    def file_memory(self) -> int:
        """How much memory, in bytes, the file that the device writes can take."""
        return file_memory(DEVICE_KINDS[self._order.kind], self.fds, self.max_file_bytes)

    def open_fds(self, opened: list[int]) -> None:
        """Append the descriptors for one process to ``opened``; the caller owns them.

        If a file that each process has to open for itself cannot be opened again, the process gets
        a copy of our descriptor. The first process can use that; a later one reports an error.
        """
        first_reopened = len(self.fds) - self._order.reopened
        for at, fd in enumerate(self.fds):
            copy = -1
            if at >= first_reopened:
                with contextlib.suppress(OSError):
                    copy = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            opened.append(os.dup(fd) if copy < 0 else copy)

    def remake(
        self, foundry: Foundry, ids: Ids | None, shared: Iterable[int], then: RemakeResult
    ) -> None:
        """Have moulds make the device's next process, and before it the broker's.

        Args:
            foundry: provides the moulds.
            ids: the host's ids for processes; ``None`` without a sandbox.
            shared: guest memory and the page of counters, which the caller keeps.
            then: called once, when ``pid`` and ``pidfd`` are set, or with a reason.
        """
        self.is_remade = True
        _Remake(self, foundry, ids, then).begin(shared)


class _Remake:
    """One attempt to make a device's next process. Owns the descriptors opened for it."""

    def __init__(
        self, device: Device, foundry: Foundry, ids: Ids | None, then: RemakeResult
    ) -> None:
        self._device = device
        self._foundry = foundry
        self._ids = ids
        self._then = then
        self._ours: socket.socket | None = None
        self._fds: list[int] = []  # for the new process, the channel first

    def begin(self, shared: Iterable[int]) -> None:
        device = self._device
        try:
            self._ours, theirs = socket_pair()
            self._fds.append(theirs.detach())
            self._fds += map(os.dup, shared)
            device.open_fds(self._fds)
            if device.broker is None:
                self._cast_device()
            else:
                fds, end = device.broker.open_fds()
                self._fds.append(end)
                owner = device.broker.owner
                ids = self._ids
                self._cast(fds, ids and (lambda _pid: ids.of_user(owner)), self._on_broker)
                self._foundry.hurry_spare()
        except (HostError, OSError) as error:
            self._fail(reason_for(error))

    def _cast_device(self) -> None:
        fds, self._fds = self._fds, []
        self._cast(fds, self._ids and self._ids.of_device, self._on_device)

    def _cast(self, fds: list[int], ids: Callable[[int], IdMap] | None, then: CastResult) -> None:
        device = self._device
        try:
            cgroup_fd = device.limits.enter(device.file_memory)
        except (HostError, OSError):
            for fd in fds:
                os.close(fd)
            raise
        in_cgroup = cgroup_fd >= 0
        if in_cgroup:
            fds.insert(0, cgroup_fd)
        as_broker = then == self._on_broker
        self._foundry.cast(Casting(device.order, as_broker, ids, in_cgroup, fds, then))

    def _on_broker(self, pid: int, pidfd: int, reason: str) -> None:
        if reason or self._device.broker is None:
            self._fail(reason)
            return
        self._device.broker.adopt(pid, pidfd)
        try:
            self._cast_device()
        except (HostError, OSError) as error:
            self._fail(reason_for(error))

    def _on_device(self, pid: int, pidfd: int, reason: str) -> None:
        if reason:
            self._fail(reason)
            return
        self._device.is_remade = False
        self._device.pid, self._device.pidfd = pid, pidfd
        self._then(self._ours, "")

    def _fail(self, reason: str) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        if self._ours is not None:
            self._ours.close()
        self._device.is_remade = False
        if self._device.broker is not None:
            self._device.broker.let_go()
        self._then(None, reason)
