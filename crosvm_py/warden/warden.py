# SPDX-License-Identifier: BSD-3-Clause
"""The warden: a single-threaded process that makes the device processes and reaps them.

The vmm does not fork devices itself, because a process with threads must not fork. The warden can,
and within a millisecond, because it has imported the device modules before. It holds no KVM
descriptor and maps no guest memory, and no guest sends it anything. It keeps the descriptors of
each device so that it can make the process again. Once the guest runs, it takes orders for new
devices from the opener alone (``orders``), and a mould makes their processes. When the vmm ends, in
whatever way, the warden ends every device and cleans up what the vmm could not.
"""

from __future__ import annotations

import os
from functools import partial

from crosvm_py.kinds.cgroup import DeviceLimits
from crosvm_py.kinds.order import is_device_name
from crosvm_py.kinds.table import DEVICE_KINDS, policies_of
from crosvm_py.warden import protocol
from crosvm_py.warden.broker import Broker, owner_of
from crosvm_py.warden.child import guest_bytes
from crosvm_py.warden.device import Device
from crosvm_py.warden.forge_proxy import reason_for
from crosvm_py.warden.foundry import Foundry
from crosvm_py.warden.maker import Maker
from crosvm_py.warden.orders import Orders
from crosvm_py.warden.resize import check_resize, resize_file
from devices.pci.address import MAX_DEVICES
from jail.ids import choose
from jail.plan import load_filter
from seccomp import syscall_name
from sys_util import linux, signal
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe
from sys_util.event_loop import EventLoop
from sys_util.log import get_logger
from sys_util.stranger import brief, judged
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.kinds.policies import RunPolicies
    from crosvm_py.warden.forge import ForgeProcess
    from crosvm_py.warden.spare_device import SpareDevice
    from jail.cgroup import VmCgroup
    from sys_util import socket
    from sys_util.wire import Message

log = get_logger("crosvm.warden")

_SHARED: Final = 2  # guest memory and the page of counters come before the device's own


class Warden:
    """Serve what the vmm asks for until it closes the channel."""

    def __init__(
        self,
        channel: Channel,
        forge: ForgeProcess,
        policies: RunPolicies | None,
        null_fd: int,
        cgroup: VmCgroup | None,
        kinds: Iterable[str] = (),
    ) -> None:
        self._channel = channel
        self._cgroup = cgroup
        self._policies = policies
        self._filters = None if policies is None else policies.devices
        self._devices: dict[int, Device] = {}
        self._next_id = 0  # above all that there have been
        self._renewing: set[int] = set()  # devices for which a mould loads new code
        self._prepared: set[int] = set()  # devices whose next restart was requested by the user
        self._sealed: protocol.Seal | None = None
        self._is_vmm_denied = False  # it said that a filter ended it
        self._orders: Orders | None = None
        self._loop = EventLoop()
        self._ids = None if policies is None else choose()
        self._maker = Maker(self._ids, self._filters, null_fd)
        self._foundry = Foundry(self._loop, forge, self._knows, kinds)
        self._foundry.on_mould_gone = self._bury_all

    def take_orders(self, sock: socket.socket) -> None:
        """Take orders of the opener through ``sock`` once the guest runs."""
        self._orders = Orders(self._loop, sock, self._add)

    def make_spares(self, count: int) -> None:
        """Make spare processes for devices that will be ordered.

        Raises:
            HostError, OSError: the host refuses it.
        """
        for _ in range(count):
            self._maker.make_spare()

    def adopt(
        self, kinds: Iterable[str], policies: Iterable[str], orders: socket.socket | None
    ) -> None:
        """Serve a run with devices of these kinds, which may need the filters ``policies``."""
        for kind in kinds:
            self._foundry.load_also(kind)
        if self._filters is not None:
            self._filters = {name: self._filters[name] for name in policies}
        if orders is not None:
            self.take_orders(orders)

    def run(self) -> None:
        """Serve the vmm until it closes the channel."""
        self._loop.add(self._channel.fileno(), self._on_message)
        try:
            self._loop.run()
        except ChannelClosed:
            log.debug("the vmm has gone")
        except VmmError as error:
            log.error("the vmm broke the protocol: %s", describe(error))
        finally:
            self.end()

    def end(self) -> None:
        """Kill and reap every child."""
        for spare in self._maker.take_spares():
            spare.kill()
        self._foundry.end()
        for device in self._devices.values():
            if device.pid:
                linux.pidfd_send_signal(device.pidfd, signal.SIGKILL)
            if device.broker is not None:
                device.broker.kill()
            device.remove_socket_files()
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass

    def _on_message(self, _events: int) -> None:
        received = self._channel.receive()
        if received is None:
            return
        message, fds = received
        try:
            judged(f"its {type(message).__name__}", self._serve, message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _serve(self, message: Message, fds: list[int]) -> None:
        match message:
            case protocol.Spawn():
                self._start(self._spawn(message, fds), fds)
            case protocol.Renew(device_id):
                self._renew(device_id)
            case protocol.Respawn(device_id):
                self._start_again(self._ended(device_id), fds)
            case protocol.Seal():
                self._seal(message)
            case protocol.Forget(device_id):
                self._forget(device_id)
            case protocol.Kill(device_id):
                self._kill(device_id)
            case protocol.VmmDenied(number, in_vcpu):
                # The vmm is being killed and closes the channel next; nothing comes after this.
                if self._is_vmm_denied:
                    raise ProtocolError("it was killed before")
                self._is_vmm_denied = True
                name, policy = syscall_name(number), "vcpu" if in_vcpu else "vmm"
                log.error("vmm: killed by seccomp: %s (%d), policy %s", name, number, policy)
            case protocol.Resize():
                self._channel.send(self._resize(message))
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__}")

    def _seal(self, message: protocol.Seal) -> None:
        """Make no process ourselves: moulds make them from now on. The vmm adds no more devices."""
        for spare in self._maker.take_spares():
            spare.kill()
            self._loop.add(spare.pidfd, partial(self._reap_spare, spare))
        if self._policies is not None and not self._sealed:
            load_filter(self._policies.sealed)
        if self._orders is not None and not self._sealed:
            self._orders.open()
        self._sealed = self._sealed or message
        self._channel.send(protocol.Sealed())

    def _spawn(self, order: protocol.Spawn, fds: list[int]) -> Device:
        """Record a device of the start, and move its own descriptors out of ``fds``."""
        if self._sealed:
            raise ProtocolError(f"it asks for device {order.device_id} while the guest runs")
        if order.device_id in self._devices:
            raise ProtocolError(f"device {order.device_id} is there already")
        device = self._new(order, fds[_SHARED:])
        del fds[_SHARED:]
        return device

    def _add(self, order: protocol.Add, fds: list[int]) -> None:
        """Record a device that is added while the guest runs, and tell the vmm."""
        if len(self._devices) >= MAX_DEVICES:
            raise ProtocolError(f"{MAX_DEVICES} devices are there already")
        if self._sealed is None or order.kind not in DEVICE_KINDS:
            raise ProtocolError(f"{order.name}: no device of kind {order.kind} can be added now")
        if not is_device_name(order.name):
            raise ProtocolError(f"{brief(order.name)} is no name of a device")
        if self._filters is not None and not self._filters.keys() >= {*policies_of((order.kind,))}:
            raise ProtocolError(f"{order.name}: its policy was not loaded at the start")
        connects = owner_of(order, fds)
        shared = (self._sealed.regions, order.max_file_bytes, connects, order.reopened)
        spawn = protocol.Spawn(
            *(self._next_id, order.name, order.kind, order.spec, *shared, self._sealed.huge_pages)
        )
        device = self._new(spawn, fds)
        self._foundry.load_also(order.kind)
        writes_file = bool(order.max_file_bytes)
        words = (spawn.device_id, order.place, order.name, order.kind, writes_file)
        try:
            self._channel.send(protocol.Added(*words))
        except (ChannelClosed, ProtocolError):
            del self._devices[spawn.device_id]  # the descriptors stay the caller's
            raise
        if device.broker is not None:
            device.broker.on_reaped = lambda: self._bury(device)

    def _new(self, order: protocol.Spawn, fds: list[int]) -> Device:
        """Record a new device; it owns its descriptors ``fds`` unless this raises."""
        kind = DEVICE_KINDS.get(order.kind)
        if kind is None:
            raise ProtocolError(f"device {order.device_id} is of no kind there is")
        if len(fds) < max(order.reopened, kind.broker is not None):
            raise ProtocolError(f"{len(fds)} descriptors for device {order.device_id}")
        limits = DeviceLimits(self._cgroup, order.name, kind, guest_bytes(order))
        broker = None
        if kind.broker is not None:
            *fds, directory = fds
            broker = Broker(order.name, order.connects, directory, self._loop)
        self._devices[order.device_id] = device = Device(order, fds, limits, broker)
        self._next_id = max(self._next_id, order.device_id) + 1
        return device

    def _forget(self, device_id: int) -> None:
        device = self._devices.get(device_id)
        if device is None or device.is_forgotten:
            raise ProtocolError(f"device {device_id} is not there to be forgotten")
        device.is_forgotten = True
        self._kill(device_id)
        if device.broker is not None:
            device.broker.on_reaped = lambda: self._bury(device)
            device.broker.let_go()
        self._bury(device)

    def _bury(self, device: Device) -> None:
        """Drop all of a device that was forgotten, once no process of it is left.

        A mould that has just made one holds its descriptors, and so the lock of its image.
        """
        device_id = device.order.device_id
        if self._foundry.holds(device_id):
            return
        if device.is_gone and self._devices.pop(device_id, None) is not None:
            device.close()
            self._prepared.discard(device_id)
            self._channel.send(protocol.Forgotten(device_id))

    def _bury_all(self) -> None:
        for device in tuple(self._devices.values()):
            if device.is_forgotten:
                self._bury(device)

    def _ended(self, device_id: int) -> Device:
        device = self._devices.get(device_id)
        if device is None or device.pid or device.is_remade or device.is_forgotten:
            raise ProtocolError(f"device {device_id} is not one that has ended")
        return device

    def _kill(self, device_id: int) -> None:
        device = self._devices.get(device_id)
        if device is not None and device.pid:  # otherwise it has ended, and ``Exited`` was sent
            linux.pidfd_send_signal(device.pidfd, signal.SIGKILL)

    def _resize(self, order: protocol.Resize) -> protocol.Resized:
        device_id = order.device_id
        device = self._devices.get(device_id)
        if device is None:
            raise ProtocolError(f"device {device_id} is not there to resize")
        check_resize(order, DEVICE_KINDS[device.order.kind], device.order)
        if not device.pid:
            return protocol.Resized(device_id, 0, "the device process has ended")
        try:
            size_bytes = resize_file(device.pid, device.fds[0], order.size_bytes)
        except OSError as error:
            return protocol.Resized(device_id, 0, f"{error.strerror}"[:256])
        device.max_file_bytes = size_bytes
        try:
            device.limits.change(device.file_memory)
        except OSError as error:  # the file has its size; the group keeps the limit it had
            log.warning("%s: its memory limit stays: %s", device.order.name, error.strerror)
        return protocol.Resized(device_id, size_bytes, "")

    def _knows(self, pid: int) -> bool:
        """Return whether ``pid`` is a process of a device or a broker."""
        devices = self._devices.values()
        return any(
            device.pid == pid or (device.broker is not None and device.broker.knows(pid))
            for device in devices
        )

    def _renew(self, device_id: int) -> None:
        if device_id not in self._devices or device_id in self._renewing:
            raise ProtocolError(f"it asks for new code for device {device_id}")
        self._renewing.add(device_id)

        def done(reason: str) -> None:
            self._renewing.remove(device_id)
            if not reason and device_id in self._devices:
                self._prepared.add(device_id)
            self._channel.send(protocol.Renewed(device_id, reason[:1024]))

        self._foundry.renew(done)

    def _start_again(self, device: Device, shared: list[int]) -> None:
        """Have a mould make the next process of a device."""
        device_id = device.order.device_id
        self._check_shared(device_id, shared)
        if device_id in self._prepared:
            self._prepared.remove(device_id)
        elif device.had_process:
            self._foundry.keep_spare()
        device.had_process = True

        def done(ours: socket.socket | None, reason: str) -> None:
            if ours is not None:
                self._started(device, ours)
            elif not device.is_forgotten:
                self._channel.send(protocol.SpawnFailed(device_id, reason[:1024]))
            if device.is_forgotten:
                self._kill(device_id)
                self._bury(device)

        device.remake(self._foundry, self._ids, shared, done)

    def _check_shared(self, device_id: int, shared: list[int]) -> None:
        if len(shared) != _SHARED:
            raise ProtocolError(f"{len(shared)} descriptors for device {device_id}")

    def _start(self, device: Device, shared: list[int]) -> None:
        """Fork the first process of a device."""
        device_id = device.order.device_id
        self._check_shared(device_id, shared)
        try:
            ours = self._maker.make(device, shared)
            device.had_process = True
        except (VmmError, OSError) as error:
            self._channel.send(protocol.SpawnFailed(device_id, reason_for(error)))
        else:
            self._started(device, ours)

    def _started(self, device: Device, ours: socket.socket) -> None:
        """Watch a new process and tell the vmm; ``ours`` is the vmm's end of its channel."""
        self._loop.add(device.pidfd, lambda _events: self._reap(device))
        with ours:
            message = protocol.Spawned(device.order.device_id, device.pid)
            self._channel.send(message, [ours.fileno()])

    def _reap_spare(self, spare: SpareDevice, _events: int) -> None:
        self._loop.remove(spare.pidfd)
        os.waitpid(spare.pid, 0)
        os.close(spare.pidfd)

    def _reap(self, device: Device) -> None:
        pid, device.pid = device.pid, 0
        if device.broker is not None:
            device.broker.let_go()
        _, wait_status = os.waitpid(pid, 0)
        self._loop.remove(device.pidfd)
        os.close(device.pidfd)
        status = os.waitstatus_to_exitcode(wait_status)
        cause = device.limits.cause_of_death()
        self._channel.send(protocol.Exited(device.order.device_id, pid, status, cause))
        self._bury(device)
