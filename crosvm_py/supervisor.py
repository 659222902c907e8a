# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's care for its device processes: make them through the warden, notice when one dies."""

from __future__ import annotations

import os
import select
import signal

from crosvm_py import warden_protocol as protocol
from crosvm_py.device_host import DeviceProcess
from crosvm_py.device_kinds import DEVICE_KINDS
from sys_util import linux
from sys_util.channel import ChannelClosed
from sys_util.errors import ProtocolError, VmmError
from sys_util.log import get_logger
from sys_util.shared_page import SharedPage
from sys_util.typing import TYPE_CHECKING, Final

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
        self._failure = ""
        self._ending = False
        loop.add(warden.channel.fileno(), self._on_warden)

    @property
    def devices(self) -> tuple[DeviceProcess, ...]:
        """Every device, in the order of their slots."""
        return tuple(self._devices)

    def spawn(self, order: DeviceOrder, memory: GuestMemory) -> DeviceProcess:
        """Ask for a device process; ``wait_ready`` waits for all of them at once.

        The order's descriptors are closed here: from now on they are the device's alone.
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
            for fd in order.fds:
                os.close(fd)
        return device

    def wait_ready(self) -> None:
        """Serve the loop until every device has said ``Ready``.

        Raises:
            VmmError: a device did not start; it says which and why.
        """
        timer = self._loop.call_later(START_SECONDS, self._give_up_waiting)
        while self._waiting and not self._failure:
            self._loop.run_once()
        timer.cancel()
        if self._failure:
            raise VmmError(self._failure)

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
