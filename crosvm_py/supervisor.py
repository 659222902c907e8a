# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's care for its device processes: make them through the warden, notice when one dies."""

from __future__ import annotations

import os
import select
import signal

from crosvm_py import warden_protocol as protocol
from crosvm_py.device_host import DeviceProcess
from crosvm_py.device_kinds import DEVICE_KINDS
from seccomp import syscall_name
from sys_util import linux
from sys_util.channel import ChannelClosed
from sys_util.errors import ConfigError, ProtocolError, VmmError
from sys_util.log import get_logger
from sys_util.shared_page import SharedPage
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from crosvm_py.device_kinds import DeviceOrder
    from crosvm_py.warden_host import WardenProcess
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory
    from sys_util.wire import Message

log = get_logger("crosvm.devices")

# From the request for a process to its ``Ready``; a slow host needs a fraction of it.
START_SECONDS: Final = 60.0

# How long the warden may take to end everything when the vmm closes the channel.
END_SECONDS: Final = 10.0

# What is called with the size that a file has now, or with a reason why it is what it was.
ResizeResult: TypeAlias = "Callable[[int, str], None]"


class Supervisor:
    """Every device process of one VM. Lives in the event loop's thread."""

    def __init__(
        self,
        loop: EventLoop,
        lock: AbstractContextManager[bool],
        warden: WardenProcess,
        on_death: Callable[[str], None],
    ) -> None:
        """``on_death`` is told once why the VM cannot go on."""
        self._loop = loop
        self._lock = lock
        self._warden = warden
        self._on_death = on_death
        self._devices: list[DeviceProcess] = []
        self._pages: list[SharedPage] = []  # the counters of each
        self._waiting: set[int] = set()
        self._files: dict[int, int] = {}  # of each device whose file can be resized
        self._resizes: dict[int, ResizeResult] = {}
        self._failure = ""
        self._ending = False
        loop.add(warden.channel.fileno(), self._on_warden)

    @property
    def devices(self) -> tuple[DeviceProcess, ...]:
        """Every device, in the order of their slots."""
        return tuple(self._devices)

    def spawn(self, order: DeviceOrder, memory: GuestMemory) -> DeviceProcess:
        """Ask for a device process; ``wait_ready`` waits for all of them at once.

        The order's descriptors are ours from now on. All are closed but a file that is written and
        can be resized.
        """
        device_id = len(self._devices)
        policy_name = DEVICE_KINDS[order.kind].policy_name
        device = DeviceProcess(device_id, order.name, policy_name, self._loop, self._lock)
        page = SharedPage.create("crosvm_counters")
        self._pages.append(page)
        device.cells = page.cells
        self._devices.append(device)
        self._waiting.add(device_id)
        device.start(
            on_ready=lambda: self._waiting.discard(device_id),
            on_failure=lambda: self._on_failure(device),
        )
        message = protocol.Spawn(
            device_id,
            order.name,
            order.kind,
            order.spec,
            memory.regions,
            order.max_file_bytes,
            order.directory,
        )
        fds = [device.their_end.fileno(), memory.fd, page.fd, *order.fds]
        try:
            self._warden.channel.send(message, fds)
        except ChannelClosed as error:
            raise VmmError("the warden has gone") from error
        finally:
            device.their_end.close()
            self._let_go(device_id, order)
        return device

    def _let_go(self, device_id: int, order: DeviceOrder) -> None:
        """Close what is the device's alone; keep a file that can be resized."""
        keeps = DEVICE_KINDS[order.kind].resizable and order.max_file_bytes
        if keeps:
            self._files[device_id] = order.fds[0]
        for fd in order.fds[1 if keeps else 0 :]:
            os.close(fd)

    def _close_files(self) -> None:
        files, self._files = self._files, {}
        for fd in files.values():
            os.close(fd)

    def report_denied_calls(self) -> None:
        """Have the warden told, in the last moment, which system call the vmm was denied."""
        linux.report_denied_calls(self._warden.channel.fileno(), protocol.VMM_DENIED_HEAD)

    def wait_ready(self) -> None:
        """Serve the loop until every device has said ``Ready``.

        Raises:
            VmmError: a device did not start; it says which and why.
        """
        timer = self._loop.call_later(START_SECONDS, self._give_up_waiting)
        syscall_name(0)  # loads the names while the devices start: under the filter it is too late
        while self._waiting and not self._failure:
            self._loop.run_once()
        timer.cancel()
        if self._failure:
            raise VmmError(self._failure)

    def resize(self, device: DeviceProcess, size_bytes: int, then: ResizeResult) -> None:
        """Have the file that ``device`` writes resized; the device itself is not told.

        Raises:
            ConfigError: it writes none, or that is under way already.
            VmmError: the warden has gone.
        """
        device_id = device.device_id
        fd = self._files.get(device_id)
        if fd is None:
            raise ConfigError("it writes no file that could be resized")
        if device_id in self._resizes:
            raise ConfigError("another resize is under way")
        try:
            self._warden.channel.send(protocol.Resize(device_id, size_bytes), [fd])
        except ChannelClosed as error:
            raise VmmError("the warden has gone") from error
        self._resizes[device_id] = then

    def end(self) -> None:
        """End every device and the warden, in order; harmless when some are gone already."""
        self._ending = True
        for device in self._devices:
            device.close()
        self._loop.remove(self._warden.channel.fileno())
        self._warden.channel.close()
        _reap(self._warden)
        for page in self._pages:
            page.close()
        self._close_files()

    def _give_up_waiting(self) -> None:
        names = ", ".join(device.name for device in self._devices if not device.device_type)
        self._failure = f"{names}: not ready after {START_SECONDS:.0f} s"

    def _on_warden(self, _events: int) -> None:
        try:
            received = self._warden.channel.receive()
            if received is None:
                return
            message, fds = received
            if fds:
                for fd in fds:
                    os.close(fd)
                raise ProtocolError("the warden sends no descriptors")
            self._take(message)
        except ChannelClosed:
            self._close_files()
            self._end_with(f"warden (pid {self._warden.pid}): ended, and its devices with it")
        except ProtocolError as error:
            self._end_with(f"warden (pid {self._warden.pid}): {error}")

    def _take(self, message: Message) -> None:
        match message:
            case protocol.Spawned(device_id, pid):
                device = self._device(device_id)
                device.pid = pid
                log.debug("%s is process %d", device.name, pid)
            case protocol.SpawnFailed(device_id, reason):
                self._end_with(f"{self._device(device_id).name}: {reason}")
            case protocol.Exited(device_id, pid, status):
                device = self._device(device_id)
                device.pid = pid
                device.death.status = status
                self._report(device)

            case protocol.Resized(device_id, size_bytes, reason):
                then = self._resizes.pop(device_id, None)
                if then is None:
                    raise ProtocolError(f"device {device_id} was not to be resized")
                then(size_bytes, reason)

    def _device(self, device_id: int) -> DeviceProcess:
        if device_id >= len(self._devices):
            raise ProtocolError(f"there is no device {device_id}")
        return self._devices[device_id]

    def _on_failure(self, device: DeviceProcess) -> None:
        """The channel is closed: the process broke a rule, or has ended by itself.

        Or it only closed the channel: whatever it is, it does not live on without one. To one that
        has ended this makes no difference.
        """
        try:
            self._warden.channel.send(protocol.Kill(device.device_id))
        except (ChannelClosed, ProtocolError):
            return  # a warden that has gone took its devices along; one that hangs is ended with us
        self._report(device)

    def _report(self, device: DeviceProcess) -> None:
        """Say how a device ended once both its last words and its status are here."""
        if device.is_open or device.death.status is None:
            return
        fd = self._files.pop(device.device_id, -1)
        if fd >= 0:
            os.close(fd)
        for line in device.death.report.splitlines():
            log.error("%s: %s", device.name, line)
        cause = device.death.describe(device.policy_name)
        self._end_with(f"{device.name} (pid {device.pid}): {cause}")

    def _end_with(self, reason: str) -> None:
        if self._ending or self._failure:
            return
        self._failure = reason
        self._on_death(reason)


def _reap(warden: WardenProcess) -> None:
    """Wait for the warden, which ends by itself; a stuck one is killed."""
    poll = select.poll()
    poll.register(warden.pidfd, select.POLLIN)
    if not poll.poll(END_SECONDS * 1000):
        log.error("warden (pid %d): does not end, killed", warden.pid)
        linux.pidfd_send_signal(warden.pidfd, signal.SIGKILL)
    os.waitpid(warden.pid, 0)
    os.close(warden.pidfd)
