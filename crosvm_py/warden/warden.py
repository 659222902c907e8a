# SPDX-License-Identifier: BSD-3-Clause
"""The warden: a single-threaded process that makes the device processes and buries them.

It exists because a process with threads must not fork, and because it forks in a millisecond what
is imported already. It holds no KVM descriptor and maps no guest memory. The descriptors of each
device it keeps, to make the process again when it has ended: no guest ever speaks to the warden.
When the vmm goes away, however it ends, the warden ends every device and tidies up what the vmm
cannot.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from functools import partial

from crosvm_py.device_process.process import run_device
from crosvm_py.device_process.protocol import CALL_DENIED_HEAD
from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.kinds.cgroup import DeviceLimits, file_memory
from crosvm_py.kinds.jail import jail_for
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.warden import protocol
from crosvm_py.warden.broker import Broker, Role
from crosvm_py.warden.code import Code, read_anew
from crosvm_py.warden.resize import check_resize, resize_file
from jail.ids import choose
from jail.namespaces import clone_into, write_id_maps
from jail.plan import confine_warden, load_filter
from jail.steps import DieWithParent
from seccomp import syscall_name
from sys_util import linux
from sys_util.channel import Channel, socket_pair
from sys_util.errors import (
    ChannelClosed,
    HostError,
    ProtocolError,
    VmmError,
    describe,
    remedy_for,
)
from sys_util.event_loop import EventLoop
from sys_util.log import get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from crosvm_py.kinds.policies import RunPolicies
    from jail.cgroup import VmCgroup
    from jail.plan import JailPlan
    from sys_util.wire import Message

log = get_logger("crosvm.warden")

_STDIO: Final = frozenset({0, 1, 2})
_SHARED: Final = 2  # guest memory and the page of counters come before the device's own


def be_warden(
    sock: socket.socket,
    null_fd: int,
    policies: RunPolicies | None,
    kinds: Iterable[str],
    cgroup: VmCgroup | None = None,
) -> None:
    """Be the warden, until the vmm closes the other end of ``sock``.

    Args:
        sock: the channel to the vmm.
        null_fd: /dev/null, for the devices.
        policies: the compiled ones of the run; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device that will be asked for, imported ahead.
        cgroup: the VM's, for groups of its devices.
    """
    os.setsid()
    linux.set_process_name("crosvm-warden")
    channel = Channel(sock, protocol.WARDEN_CODEC)
    try:
        if policies is not None:
            confine_warden()
        for kind in kinds:
            DEVICE_KINDS[kind].preload()
        gc.freeze()
        gc.enable()
        warden = _Warden(channel, policies, null_fd, cgroup)
        if policies is not None:
            syscall_name(0)  # loads the names, for the vmm's last words
            linux.report_denied_calls(sock.fileno(), protocol.WARDEN_DENIED_HEAD)
            load_filter(policies.warden)
    except (VmmError, OSError) as error:
        with contextlib.suppress(ChannelClosed, ProtocolError):  # a vmm that has gone has its own
            channel.send(protocol.CannotStart(_reason(error)))
        return
    warden.run()


class _Device:
    """One device: what its processes are made from, and the process that it has now, if any.

    Owns its descriptors.
    """

    def __init__(
        self, order: protocol.Spawn, fds: list[int], limits: DeviceLimits, broker: Broker | None
    ) -> None:
        self.broker = broker
        self.order = order
        self.limits = limits
        self.fds = fds
        self.max_file_bytes = order.max_file_bytes
        self.pid = 0
        self.pidfd = -1

    @property
    def file_memory(self) -> int:
        """How much memory the disk can take that it writes."""
        return file_memory(DEVICE_KINDS[self.order.kind], self.fds, self.max_file_bytes)

    def open_fds(self, opened: list[int]) -> None:
        """Append the descriptors of one process to ``opened``; they are the caller's.

        Where the host does not let us open a file anew, the process gets ours: the first one can
        use it, and one after it will say what is wrong.
        """
        first_reopened = len(self.fds) - self.order.reopened
        for at, fd in enumerate(self.fds):
            copy = -1
            if at >= first_reopened:
                with contextlib.suppress(OSError):
                    copy = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            opened.append(os.dup(fd) if copy < 0 else copy)


class _Warden:
    """Serve what the vmm asks for until it closes the channel."""

    def __init__(
        self,
        channel: Channel,
        policies: RunPolicies | None,
        null_fd: int,
        cgroup: VmCgroup | None,
    ) -> None:
        self._channel = channel
        self._cgroup = cgroup
        self._policies = policies
        self._null_fd = null_fd
        self._devices: dict[int, _Device] = {}
        self._sealed = False
        self._code = Code(DEVICE_KINDS, run_device)
        self._ids = None if policies is None else choose()
        self._loop = EventLoop()

    def run(self) -> None:
        self._loop.add(self._channel.fileno(), self._on_message)
        try:
            self._loop.run()
        except ChannelClosed:
            log.debug("the vmm has gone")
        except VmmError as error:
            log.error("the vmm broke the protocol: %s", describe(error))
        finally:
            for device in self._devices.values():
                if device.pid:
                    linux.pidfd_send_signal(device.pidfd, signal.SIGKILL)
                    os.waitpid(device.pid, 0)
                if device.broker is not None:
                    device.broker.end()

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
                self._start(self._new(message, fds), fds, fresh=False)
            case protocol.Respawn(device_id, fresh):
                self._start(self._ended(device_id), fds, fresh=fresh)
            case protocol.Seal():
                self._sealed = True
                self._channel.send(protocol.Sealed())
            case protocol.Kill(device_id):
                self._kill(device_id)
            case protocol.VmmDenied(number, in_vcpu):
                # Its last words; the channel is closed next.
                name, policy = syscall_name(number), "vcpu" if in_vcpu else "vmm"
                log.error("vmm: killed by seccomp: %s (%d), policy %s", name, number, policy)
            case protocol.Resize():
                self._channel.send(self._resize(message))
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__}")

    def _new(self, order: protocol.Spawn, fds: list[int]) -> _Device:
        """Take up a device; its own descriptors leave ``fds``."""
        if self._sealed:
            raise ProtocolError(f"it asks for device {order.device_id} while the guest runs")
        if order.device_id in self._devices:
            raise ProtocolError(f"device {order.device_id} is there already")
        kind = DEVICE_KINDS.get(order.kind)
        if kind is None:
            raise ProtocolError(f"device {order.device_id} is of no kind there is")
        if len(fds) < _SHARED + (kind.broker is not None):
            raise ProtocolError(f"{len(fds)} descriptors for device {order.device_id}")
        limits = DeviceLimits(self._cgroup, order.name, kind, _guest_bytes(order))
        broker = None
        if kind.broker is not None:
            ids = self._ids
            broker = Broker(order.name, kind.broker, order.connects, ids, fds.pop(), self._loop)
        self._devices[order.device_id] = device = _Device(order, fds[_SHARED:], limits, broker)
        del fds[_SHARED:]
        return device

    def _ended(self, device_id: int) -> _Device:
        device = self._devices.get(device_id)
        if device is None or device.pid:
            raise ProtocolError(f"device {device_id} is not one that has ended")
        return device

    def _kill(self, device_id: int) -> None:
        device = self._devices.get(device_id)
        if device is not None and device.pid:  # else it ended by itself, and the vmm will read so
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

    def _start(self, device: _Device, shared: list[int], *, fresh: bool) -> None:
        device_id = device.order.device_id
        if len(shared) != _SHARED:
            raise ProtocolError(f"{len(shared)} descriptors for device {device_id}")
        try:
            if fresh:
                self._code = read_anew({device.order.kind for device in self._devices.values()})
            ours = self._make(device, shared)
        except (VmmError, OSError) as error:
            self._channel.send(protocol.SpawnFailed(device_id, _reason(error)))
            return
        with ours:
            self._channel.send(protocol.Spawned(device_id, device.pid), [ours.fileno()])

    def _make(self, device: _Device, shared: list[int]) -> socket.socket:
        """Make the process and return the vmm's end of its channel.

        Raises:
            HostError, OSError: the host does not let us; there is no process.
        """
        ours, theirs = socket_pair()
        fds = [theirs.fileno(), *shared]
        try:
            device.open_fds(fds)
            if device.broker is not None:
                fork = partial(self._fork, device)
                fds.append(device.broker.start(self._policies, fork))
            run = partial(self._code.run, device.order)
            role = Role(run, self._jail(device, fds), CALL_DENIED_HEAD)
            device.pid, device.pidfd = self._fork(device, role, fds)
        except (HostError, OSError):
            if device.broker is not None:
                device.broker.let_go()
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in fds[1 + len(shared) :]:
                os.close(fd)
        self._loop.add(device.pidfd, lambda _events: self._bury(device))
        return ours

    def _fork(self, device: _Device, role: Role, fds: list[int]) -> tuple[int, int]:
        """Fork a process and let it go once its ids are mapped; return pid and pidfd."""
        ids = self._ids
        cgroup_fd = device.limits.enter(device.file_memory)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork() if ids is None else clone_into(cgroup_fd)
            if pid == 0:
                os.close(go_write)
                _be_child(role, fds, go_read, self._null_fd)
            try:
                if ids is not None:
                    user = ids.of_device(pid) if role.owner is None else ids.of_user(role.owner)
                    write_id_maps(pid, user)
                pidfd = os.pidfd_open(pid)
            except (HostError, OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            os.write(go_write, b"!")
        finally:
            os.close(go_read)
            os.close(go_write)
            if cgroup_fd >= 0:
                os.close(cgroup_fd)
        return pid, pidfd

    def _jail(self, device: _Device, fds: list[int]) -> JailPlan | None:
        if self._policies is None or self._ids is None:
            return None
        order = device.order
        kind = self._code.kinds[order.kind]
        policy = self._policies.devices[kind.policy_name]
        return jail_for(
            kind,
            policy,
            keep_fds=_STDIO.union(fds),
            max_file_bytes=device.max_file_bytes,
            guest_bytes=_guest_bytes(order),
            ids=self._ids,
        )

    def _bury(self, device: _Device) -> None:
        pid, device.pid = device.pid, 0
        if device.broker is not None:
            device.broker.let_go()
        _, wait_status = os.waitpid(pid, 0)
        self._loop.remove(device.pidfd)
        os.close(device.pidfd)
        status = os.waitstatus_to_exitcode(wait_status)
        cause = device.limits.cause_of_death()
        self._channel.send(protocol.Exited(device.order.device_id, pid, status, cause))


def _reason(error: VmmError | OSError) -> str:
    """Return why something cannot be made, as a message can hold it."""
    if isinstance(error, OSError):
        return f"{error.strerror}{remedy_for(error)}"[:1024]
    return describe(error)[:1024]


def _guest_bytes(order: protocol.Spawn) -> int:
    return sum(region.size_bytes for region in order.regions)


def _be_child(role: Role, fds: list[int], go_fd: int, null_fd: int) -> NoReturn:
    status = EXIT_BUG
    try:
        linux.report_denied_calls(fds[0], role.denied_head)  # the warden's channel is not ours
        for fd in _STDIO:
            os.dup2(null_fd, fd)
        if os.read(go_fd, 1):  # nothing: the warden died or gave up
            if role.jail is None:
                linux.close_all_fds_except({*_STDIO, *fds})
                DieWithParent().apply()
            status = role.run(socket.socket(fileno=fds[0]), fds[1:], role.jail)
    finally:
        os._exit(status)
