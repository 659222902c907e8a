# SPDX-License-Identifier: BSD-3-Clause
"""The warden: a single-threaded process that makes the device processes and reaps them.

The vmm does not fork devices itself, because a process with threads must not fork. The warden can,
and within a millisecond, because it has imported the device modules before. It holds no KVM
descriptor and maps no guest memory, and no guest sends it anything. It keeps the descriptors of
each device so that it can make the process again. When the vmm ends, in whatever way, the warden
ends every device and cleans up what the vmm could not.
"""

from __future__ import annotations

import contextlib
import gc
import os

from crosvm_py import bundle
from crosvm_py.kinds.cgroup import DeviceLimits
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.warden import protocol
from crosvm_py.warden.broker import Broker
from crosvm_py.warden.child import be_child, broker_role, device_role, guest_bytes, let_go
from crosvm_py.warden.device import Device
from crosvm_py.warden.forge import start_forge
from crosvm_py.warden.forge_proxy import reason_for
from crosvm_py.warden.foundry import Foundry
from crosvm_py.warden.resize import check_resize, resize_file
from jail.ids import choose
from jail.namespaces import clone_into
from jail.plan import confine_warden, load_filter
from seccomp import syscall_name
from sys_util import linux, signal
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ChannelClosed, HostError, ProtocolError, VmmError, describe
from sys_util.event_loop import EventLoop
from sys_util.log import get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crosvm_py.kinds.policies import RunPolicies
    from crosvm_py.warden.child import Role
    from crosvm_py.warden.forge import ForgeProcess
    from jail.cgroup import VmCgroup
    from jail.ids import IdMap
    from sys_util import socket
    from sys_util.wire import Message

log = get_logger("crosvm.warden")

_SHARED: Final = 2  # guest memory and the page of counters come before the device's own


def be_warden(
    sock: socket.socket,
    null_fd: int,
    policies: RunPolicies | None,
    kinds: Iterable[str],
    cgroup: VmCgroup | None = None,
) -> None:
    """Run as the warden until the vmm closes the other end of ``sock``.

    Args:
        sock: the channel to the vmm.
        null_fd: /dev/null, for the devices.
        policies: the compiled policies of the run; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device in this VM; their modules are imported first.
        cgroup: the group of the VM, in which devices get groups of their own.
    """
    os.setsid()
    linux.set_process_name("crosvm-warden")
    kinds = sorted(kinds)
    channel = Channel(sock, protocol.WARDEN_CODEC)
    try:
        if policies is not None:
            confine_warden()
        for kind in kinds:
            DEVICE_KINDS[kind].preload()
        syscall_name(0)  # loads the names now: under the filter no file can be opened
        bundle.drop()
        gc.freeze()
        gc.enable()
        forge = start_forge(policies, kinds, null_fd)  # after the imports, to share their pages
        warden = _Warden(channel, forge, policies, null_fd, cgroup)
        if policies is not None:
            linux.report_denied_calls(sock.fileno(), protocol.WARDEN_DENIED_HEAD)
            load_filter(policies.warden)
    except (VmmError, OSError) as error:
        with contextlib.suppress(ChannelClosed, ProtocolError):  # the vmm may have ended already
            channel.send(protocol.CannotStart(reason_for(error)))
        return
    warden.run()


class _Warden:
    """Serve what the vmm asks for until it closes the channel."""

    def __init__(
        self,
        channel: Channel,
        forge: ForgeProcess,
        policies: RunPolicies | None,
        null_fd: int,
        cgroup: VmCgroup | None,
    ) -> None:
        self._channel = channel
        self._cgroup = cgroup
        self._policies = policies
        self._filters = None if policies is None else policies.devices
        self._null_fd = null_fd
        self._devices: dict[int, Device] = {}
        self._renewing: set[int] = set()  # devices for which a mould loads new code
        self._prepared: set[int] = set()  # devices whose next restart was requested by the user
        self._sealed = False
        self._loop = EventLoop()
        self._ids = None if policies is None else choose()
        self._foundry = Foundry(self._loop, forge, self._knows)

    def run(self) -> None:
        self._loop.add(self._channel.fileno(), self._on_message)
        try:
            self._loop.run()
        except ChannelClosed:
            log.debug("the vmm has gone")
        except VmmError as error:
            log.error("the vmm broke the protocol: %s", describe(error))
        finally:
            self._end()

    def _end(self) -> None:
        """Kill and reap every child."""
        self._foundry.end()
        for device in self._devices.values():
            if device.pid:
                linux.pidfd_send_signal(device.pidfd, signal.SIGKILL)
            if device.broker is not None:
                device.broker.kill()
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
                self._start(self._new(message, fds), fds)
            case protocol.Renew(device_id):
                self._renew(device_id)
            case protocol.Respawn(device_id):
                self._start_again(self._ended(device_id), fds)
            case protocol.Seal():
                self._seal()
            case protocol.Kill(device_id):
                self._kill(device_id)
            case protocol.VmmDenied(number, in_vcpu):
                # The vmm is being killed and closes the channel next.
                name, policy = syscall_name(number), "vcpu" if in_vcpu else "vmm"
                log.error("vmm: killed by seccomp: %s (%d), policy %s", name, number, policy)
            case protocol.Resize():
                self._channel.send(self._resize(message))
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__}")

    def _seal(self) -> None:
        """Make no more devices, and no process ourselves: from now on moulds make them."""
        if self._policies is not None and not self._sealed:
            load_filter(self._policies.sealed)
        self._sealed = True
        self._channel.send(protocol.Sealed())

    def _new(self, order: protocol.Spawn, fds: list[int]) -> Device:
        """Record a new device and move its own descriptors out of ``fds``."""
        if self._sealed:
            raise ProtocolError(f"it asks for device {order.device_id} while the guest runs")
        if order.device_id in self._devices:
            raise ProtocolError(f"device {order.device_id} is there already")
        kind = DEVICE_KINDS.get(order.kind)
        if kind is None:
            raise ProtocolError(f"device {order.device_id} is of no kind there is")
        if len(fds) < _SHARED + (kind.broker is not None):
            raise ProtocolError(f"{len(fds)} descriptors for device {order.device_id}")
        limits = DeviceLimits(self._cgroup, order.name, kind, guest_bytes(order))
        broker = None
        if kind.broker is not None:
            broker = Broker(order.name, order.connects, fds.pop(), self._loop)
        self._devices[order.device_id] = device = Device(order, fds[_SHARED:], limits, broker)
        del fds[_SHARED:]
        return device

    def _ended(self, device_id: int) -> Device:
        device = self._devices.get(device_id)
        if device is None or device.pid or device.is_remade:
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
            if not reason:
                self._prepared.add(device_id)
            self._channel.send(protocol.Renewed(device_id, reason[:1024]))

        self._foundry.renew(done)

    def _start_again(self, device: Device, shared: list[int]) -> None:
        """Have a mould make the next process of a device."""
        device_id = device.order.device_id
        self._check_shared(device_id, shared)
        if device_id in self._prepared:
            self._prepared.remove(device_id)
        else:
            self._foundry.keep_spare()

        def done(ours: socket.socket | None, reason: str) -> None:
            if ours is None:
                self._channel.send(protocol.SpawnFailed(device_id, reason[:1024]))
            else:
                self._started(device, ours)

        device.remake(self._foundry, self._ids, shared, done)

    def _check_shared(self, device_id: int, shared: list[int]) -> None:
        if len(shared) != _SHARED:
            raise ProtocolError(f"{len(shared)} descriptors for device {device_id}")

    def _start(self, device: Device, shared: list[int]) -> None:
        """Fork the first process of a device."""
        device_id = device.order.device_id
        self._check_shared(device_id, shared)
        try:
            ours = self._make(device, shared)
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

    def _make(self, device: Device, shared: list[int]) -> socket.socket:
        """Make the process and return the vmm's end of its channel.

        Raises:
            HostError, OSError: the host refuses it; there is no process.
        """
        ours, theirs = socket_pair()
        fds = [theirs.fileno(), *shared]
        try:
            device.open_fds(fds)
            if device.broker is not None:
                fds.append(self._make_broker(device, device.broker))
            ids = self._ids and self._ids.of_device
            role = device_role(device.order, fds, self._filters, _inside(ids))
            device.pid, device.pidfd = self._fork(device, role, fds, ids)
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
            broker.adopt(*self._fork(device, role, fds, ids))
        except BaseException:
            os.close(end)
            raise
        finally:
            for fd in fds:
                os.close(fd)
        return end

    def _fork(
        self,
        device: Device,
        role: Role,
        fds: list[int],
        ids: Callable[[int], IdMap] | None,
    ) -> tuple[int, int]:
        """Fork a process, and send it the byte once its ids are mapped; return pid and pidfd."""
        cgroup_fd = device.limits.enter(device.file_memory)
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


def _inside(ids: Callable[[int], IdMap] | None) -> tuple[int | None, int | None]:
    """Return the ids of a process inside its user namespace; ``None`` twice without a sandbox."""
    return (None, None) if ids is None else ids(0).inside()
