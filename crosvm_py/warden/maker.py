# SPDX-License-Identifier: BSD-3-Clause
"""How the warden makes the first process of a device, and its broker's, before the guest runs."""

from __future__ import annotations

import os

from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.warden.child import be_child, broker_role, device_role, let_go
from jail.namespaces import clone_into
from sys_util.channel import socket_pair
from sys_util.errors import ChannelClosed, HostError, ProtocolError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.warden.broker import Broker
    from crosvm_py.warden.child import Policies, Role
    from crosvm_py.warden.device import Device
    from crosvm_py.warden.spare_device import SpareDevice
    from jail.ids import IdMap, Ids
    from sys_util import socket


class Maker:
    """Makes processes as children of the calling one, which shares its memory with them."""

    def __init__(self, ids: Ids | None, filters: Policies | None, null_fd: int) -> None:
        """``ids`` and ``filters`` are ``None`` without a sandbox; ``null_fd`` is /dev/null."""
        self._ids = ids
        self._filters = filters
        self._null_fd = null_fd
        self._spares: list[SpareDevice] = []

    def make_spare(self) -> None:
        """Make a process that ``make`` can use for the next device.

        Raises:
            HostError, OSError: the host refuses it; there is no process.
        """
        if self._ids is None or self._filters is None:
            return
        from crosvm_py.warden.spare_device import SpareDevice, spare_role  # only a pool needs it

        ours, theirs = socket_pair()
        with theirs:
            ids = self._ids.of_device
            fd = theirs.fileno()
            role = spare_role(self._filters, _inside(ids), fd)
            try:
                pid, pidfd = self._fork(-1, role, [fd], ids)
            except (HostError, OSError):
                ours.close()
                raise
            self._spares.append(SpareDevice(pid, pidfd, ours))

    def take_spares(self) -> list[SpareDevice]:
        """Return the spare processes that no device has got; the caller ends them."""
        spares, self._spares = self._spares, []
        return spares

    def make(self, device: Device, shared: list[int]) -> socket.socket:
        """Make the process and return the vmm's end of its channel.

        Raises:
            HostError, OSError: the host refuses it; there is no process.
        """
        adopted = self._adopt(device, shared)
        if adopted is not None:
            return adopted
        ours, theirs = socket_pair()
        fds = [theirs.fileno(), *shared]
        try:
            device.open_fds(fds)
            if device.broker is not None:
                fds.append(self._make_broker(device, device.broker))
            ids = self._ids and self._ids.of_device
            role = device_role(device.order, fds, self._filters, _inside(ids))
            cgroup_fd = device.limits.enter(device.file_memory)
            device.pid, device.pidfd = self._fork(cgroup_fd, role, fds, ids)
        except (HostError, OSError):
            if device.broker is not None:
                device.broker.let_go()
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in fds[1 + len(shared) :]:
                os.close(fd)
        return ours

    def _make_broker(self, device: Device, broker: Broker) -> int:
        """Make the broker's process and return the device's end of the channel to it.

        Raises:
            HostError, OSError: the host refuses it; there is no process.
        """
        kind = DEVICE_KINDS[device.order.kind].broker
        if kind is None:
            raise ProtocolError(f"{device.order.name} has no broker")
        fds, end = broker.open_fds()
        try:
            user = self._ids and self._ids.of_user(broker.owner)
            ids = None if user is None else lambda _pid: user
            role = broker_role(device.order, kind, fds, self._filters, _inside(ids))
            cgroup_fd = device.limits.enter(device.file_memory)
            broker.adopt(*self._fork(cgroup_fd, role, fds, ids))
        except BaseException:
            os.close(end)
            raise
        finally:
            for fd in fds:
                os.close(fd)
        return end

    def _adopt(self, device: Device, shared: list[int]) -> socket.socket | None:
        """Have a spare process be the device; return the vmm's end of its channel, if there is one.

        A broker makes another process necessary, so such a device gets no spare.
        """
        if device.broker is not None or self._ids is None or not self._spares:
            return None
        spare = self._spares.pop()
        fds = list(shared)
        try:
            device.open_fds(fds)
            spare.order(device.order, _inside(self._ids.of_device), fds)
        except (ChannelClosed, ProtocolError):
            spare.end()  # it has ended before, so that waits for nothing
            return None
        finally:
            for fd in fds[len(shared) :]:
                os.close(fd)
        device.pid, device.pidfd = spare.pid, spare.pidfd
        return spare.sock

    def _fork(
        self,
        cgroup_fd: int,
        role: Role,
        fds: list[int],
        ids: Callable[[int], IdMap] | None,
    ) -> tuple[int, int]:
        """Fork a process, and send it the byte once its ids are mapped; return pid and pidfd.

        It is born in the group ``cgroup_fd``, which is closed; -1 for none.
        """
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork() if ids is None else clone_into(cgroup_fd)
            if pid == 0:
                os.close(go_write)
                be_child(role, fds, go_read, self._null_fd)
            return pid, let_go(pid, go_write, ids and ids(pid))
        finally:
            os.close(go_read)
            os.close(go_write)
            if cgroup_fd >= 0:
                os.close(cgroup_fd)


def _inside(ids: Callable[[int], IdMap] | None) -> tuple[int | None, int | None]:
    """Return the ids of a process inside its user namespace; ``None`` twice without a sandbox."""
    return (None, None) if ids is None else ids(0).inside()
