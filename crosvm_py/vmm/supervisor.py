# SPDX-License-Identifier: BSD-3-Clause
"""Supervise the device processes: have the warden start them, and restart those that end."""

from __future__ import annotations

import os
import time

from crosvm_py.care import DEFAULT_CARE, NEVER
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.vmm.device_proxy import DeviceProcess
from crosvm_py.vmm.resizing import Resizing
from crosvm_py.vmm.supervised import SupervisedDevice
from crosvm_py.warden import protocol
from seccomp import syscall_name
from sys_util import linux, socket
from sys_util import log as logging
from sys_util.errors import ChannelClosed, ConfigError, ProtocolError, VmmError, describe
from sys_util.shared_page import SharedPage
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crosvm_py.care import Care
    from crosvm_py.kinds.order import DeviceOrder
    from crosvm_py.vmm.resizing import ResizeResult
    from crosvm_py.vmm.supervised import RestartResult
    from crosvm_py.vmm.warden_proxy import WardenProcess
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory
    from sys_util.wire import Message

log = logging.get_logger("crosvm.devices")

# The most time from the request for a process to its ``Ready``. Even slow hosts need far less.
START_SECONDS: Final = 60.0


class Supervisor:
    """Every device process of one VM. Lives in the event loop's thread."""

    def __init__(
        self,
        loop: EventLoop,
        lock: AbstractContextManager[bool],
        warden: WardenProcess,
        on_death: Callable[[str], None],
        care: Care = DEFAULT_CARE,
    ) -> None:
        """``on_death`` is called once, with the reason, when the VM cannot go on."""
        self._loop = loop
        self._lock = lock
        self._warden = warden
        self._on_death = on_death
        self._care = care
        self._supervised: list[SupervisedDevice] = []
        self._memory_fd = -1
        self._waiting: set[int] = set()
        self._resizing = Resizing(self._order)
        self._failure = ""
        self._sealed = False
        self._ending = False
        self._watches_health = False
        loop.add(warden.channel.fileno(), self._on_warden)

    @property
    def devices(self) -> tuple[DeviceProcess, ...]:
        """Every device, in the order of their slots."""
        return tuple(supervised.device for supervised in self._supervised)

    def spawn(self, order: DeviceOrder, memory: GuestMemory) -> DeviceProcess:
        """Ask the warden for a device process; ``wait_ready`` waits for all of them at once.

        The descriptors of ``order`` are sent to the warden and closed here.
        """
        device_id = len(self._supervised)
        kind = DEVICE_KINDS[order.kind]
        device = DeviceProcess(
            device_id, order.name, kind, self._loop, self._lock, self._care.timeout_seconds
        )
        supervised = SupervisedDevice(
            device, SharedPage.create("crosvm_counters"), self._care.restarts
        )
        supervised.resizable = bool(kind.resizable and order.max_file_bytes)
        device.cells = supervised.page.cells
        device.expect(lambda: self._on_ready(supervised), lambda: self._on_failure(supervised))
        self._supervised.append(supervised)
        self._waiting.add(device_id)
        self._memory_fd = memory.fd
        message = protocol.Spawn(
            device_id,
            order.name,
            order.kind,
            order.spec,
            memory.regions,
            order.max_file_bytes,
            order.connects,
            order.reopened,
            memory.huge_pages,
        )
        try:
            self._order(message, [memory.fd, supervised.page.fd, *order.fds])
        finally:
            for fd in order.fds:
                os.close(fd)
        return device

    def seal(self) -> None:
        """Have the warden confine itself and refuse further devices; return when it has done so.

        Raises:
            VmmError: the warden has ended, or does not answer.
        """
        self._order(protocol.Seal())
        self._serve_until(lambda: self._sealed, lambda: "warden")

    def report_denied_calls(self) -> None:
        """Have the SIGSYS handler tell the warden which system call the vmm was denied."""
        linux.report_denied_calls(
            self._warden.channel.fileno(),
            protocol.VMM_DENIED_HEAD,
            status=VmExit.CRASH,
            names_thread=True,
        )

    def wait_ready(self) -> None:
        """Serve the loop until every device has said ``Ready``.

        Raises:
            VmmError: a device did not start; it says which and why.
        """
        syscall_name(0)  # loads the names now: under the filter no file can be opened
        self._serve_until(lambda: not self._waiting, self._names_waited_for)
        if not self._watches_health:
            self._watches_health = True
            self._watch_health()

    def begin_resize(self, device: DeviceProcess) -> None:
        """Reserve the disk for one resize until ``end_resize``; see ``Resizing.begin``."""
        self._resizing.begin(self._supervised[device.device_id])

    def end_resize(self, device: DeviceProcess) -> None:
        """Release the disk: the resize has succeeded or failed."""
        self._resizing.end(self._supervised[device.device_id])

    def resize(self, device: DeviceProcess, size_bytes: int, then: ResizeResult) -> None:
        """Have the warden resize the file that ``device`` writes; see ``Resizing.resize``."""
        self._resizing.resize(self._supervised[device.device_id], size_bytes, then)

    def restart(self, device: DeviceProcess, then: RestartResult) -> None:
        """Replace a device's process by one that loads the code as it is installed now.

        ``then`` is called when the new process serves, or with the reason why the old one goes on.

        Raises:
            ConfigError: the device has no running process, or another restart is under way.
            VmmError: the warden has ended.
        """
        supervised = self._supervised[device.device_id]
        if supervised.is_renewing or supervised.on_restarted is not None:
            raise ConfigError("another restart is under way")
        if not device.status.ready:
            raise ConfigError(f"it has no process that serves now ({device.status.word})")
        self._order(protocol.Renew(device.device_id))
        supervised.is_renewing, supervised.on_restarted = True, then

    def end(self) -> None:
        """End every device, then the warden; some of them may have ended before."""
        self._ending = True
        for supervised in self._supervised:
            supervised.device.close()
        self._loop.remove(self._warden.channel.fileno())
        self._warden.end()
        for supervised in self._supervised:
            supervised.page.close()

    def _order(self, message: Message, fds: Sequence[int] = ()) -> None:
        try:
            self._warden.channel.send(message, fds)
        except ChannelClosed as error:
            self._on_warden(0)  # it may have sent the reason before it ended
            raise VmmError(self._failure or "the warden has gone") from error

    def _watch_health(self) -> None:
        """Look for processes that hang, four times per timeout."""

        def look() -> None:
            for supervised in self._supervised:
                supervised.device.check_health(self._care.timeout_seconds)
            self._watch_health()

        self._loop.call_later(self._care.timeout_seconds / 4, look)

    def _serve_until(self, done: Callable[[], bool], name: Callable[[], str]) -> None:
        def give_up() -> None:
            self._failure = f"{name()}: not ready after {START_SECONDS:.0f} s"

        timer = self._loop.call_later(START_SECONDS, give_up)
        while not (done() or self._failure):
            self._loop.run_once()
        timer.cancel()
        if self._failure:
            raise VmmError(self._failure)

    def _names_waited_for(self) -> str:
        return ", ".join(self._supervised[at].device.name for at in sorted(self._waiting))

    # Messages from the warden.

    def _on_warden(self, _events: int) -> None:
        try:
            received = self._warden.channel.receive()
            if received is None:
                return
            message, fds = received
            if len(fds) != int(isinstance(message, protocol.Spawned)):
                for fd in fds:
                    os.close(fd)
                raise ProtocolError(f"{type(message).__name__} with {len(fds)} descriptors")
            judged(f"its {type(message).__name__}", self._take, message, fds)
        except ChannelClosed:
            self._end_vm(f"warden (pid {self._warden.pid}): ended, and its devices with it")
        except VmmError as error:
            self._end_vm(f"warden (pid {self._warden.pid}): {describe(error)}")

    def _take(self, message: Message, fds: list[int]) -> None:
        match message:
            case protocol.Spawned(device_id, pid):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fds[0])
                try:
                    supervised = self._without_process(device_id)
                    device = supervised.device
                    device.pid = pid
                    device.attach(sock)
                    if supervised.timer is not None:  # the process begins now: not to be late
                        self._limit_start(supervised)
                except Exception:
                    sock.close()
                    raise
                log.debug("%s is process %d", device.name, pid)
            case protocol.SpawnFailed(device_id, reason):
                supervised = self._without_process(device_id)
                supervised.stop_waiting()
                self._on_lost(supervised, f"{supervised.device.name}: {reason}")
            case protocol.Exited(device_id, pid, status, cause):
                supervised = self._supervised_device(device_id)
                supervised.device.pid = pid
                supervised.device.death.status = status
                supervised.device.death.cause = cause
                self._report(supervised)
            case protocol.WardenDenied(number):
                policy = "warden_sealed" if self._sealed else "warden"
                denied = f"{syscall_name(number)} ({number}), policy {policy}"
                self._end_vm(f"warden (pid {self._warden.pid}): killed by seccomp: {denied}")
            case protocol.CannotStart(reason):
                self._end_vm(f"warden: {reason}")
            case _:
                self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        match message:
            case protocol.Sealed():
                self._sealed = True
            case protocol.Renewed(device_id, reason):
                self._on_renewed(self._supervised_device(device_id), reason)
            case protocol.Resized():
                self._resizing.take(message)

    def _supervised_device(self, device_id: int) -> SupervisedDevice:
        if device_id >= len(self._supervised):
            raise ProtocolError(f"there is no device {device_id}")
        return self._supervised[device_id]

    def _without_process(self, device_id: int) -> SupervisedDevice:
        supervised = self._supervised_device(device_id)
        if supervised.device.is_open:
            raise ProtocolError(f"device {device_id} has a process")
        return supervised

    # The life of a process.

    def _on_ready(self, supervised: SupervisedDevice) -> None:
        now = time.monotonic()
        supervised.ready(now)
        self._waiting.discard(supervised.device.device_id)
        device = supervised.device
        if device.status.restarts:
            took_ms = 1000 * (now - supervised.ended_at)
            facts = (device.name, device.pid, took_ms, device.status.restarts)
            supervised.log.info("%s: process %d goes on after %.0f ms (restart %d)", *facts)
        supervised.answer_restart("")

    def _on_failure(self, supervised: SupervisedDevice) -> None:
        """Kill the process: its channel is closed, so the vmm can no longer talk to it.

        The process broke a rule, closed the channel, or has ended; then killing it has no effect.
        """
        supervised.ended_at = time.monotonic()
        self._kill(supervised)
        self._report(supervised)

    def _on_renewed(self, supervised: SupervisedDevice, reason: str) -> None:
        """Take the warden's answer to ``Renew``: the code of the next process is loaded, or not."""
        device = supervised.device
        supervised.is_renewing = False
        if reason:
            supervised.log.error("%s: is not restarted: %s", device.name, reason)
            supervised.answer_restart(f"{device.name}: {reason}")
        elif supervised.on_restarted and device.status.ready:  # otherwise it has ended meanwhile
            supervised.on_purpose = True
            device.finish(lambda: self._end_process(supervised))

    def _end_process(self, supervised: SupervisedDevice) -> None:
        """End a process for a requested restart; it has finished the requests it had begun."""
        if supervised.device.is_open:
            supervised.ended_at = time.monotonic()
            supervised.device.close()
            self._kill(supervised)
            self._report(supervised)

    def _kill(self, supervised: SupervisedDevice) -> None:
        try:
            self._warden.channel.send(protocol.Kill(supervised.device.device_id))
        except (ChannelClosed, ProtocolError):
            return  # the devices of an ended warden die with it; if it hangs, ``end`` kills it

    def _report(self, supervised: SupervisedDevice) -> None:
        """Log how a process ended, once its channel is closed and its exit status is known."""
        device = supervised.device
        if device.is_open or device.death.status is None or self._ending:
            return
        supervised.stop_waiting()
        if not device.death.is_told_in_one_line:
            for line in device.death.report.splitlines():
                device.say(logging.ERROR, log.module, line)
        if supervised.on_purpose:
            supervised.on_purpose = False
            log.info("%s (pid %d): ended to be restarted", device.name, device.pid)
            self._respawn(supervised)
        else:
            supervised.check_state()
            cause = device.death.describe(device.kind.policy_name)
            self._on_lost(supervised, f"{device.name} (pid {device.pid}): {cause}")

    def _on_lost(self, supervised: SupervisedDevice, line: str) -> None:
        """Restart a device whose process ended unexpectedly or could not be made, or give it up."""
        if not supervised.device.status.served or self._care.restarts == NEVER:
            self._end_vm(line)
            return
        supervised.log.error("%s", line)
        supervised.answer_restart(line)
        delay = supervised.budget.next_delay(time.monotonic())
        if delay is None:
            facts = (supervised.device.name, supervised.budget.describe())
            log.error("%s: is lost to the guest: restarted %s (--device-restart)", *facts)
            supervised.device.give_up()
        elif delay:
            self._loop.call_later(delay, lambda: self._respawn(supervised))
        else:
            self._respawn(supervised)

    def _respawn(self, supervised: SupervisedDevice) -> None:
        if self._ending or self._failure:
            return
        supervised.device.status.restarts += 1
        supervised.is_ready = False
        message = protocol.Respawn(supervised.device.device_id)
        try:
            self._warden.channel.send(message, [self._memory_fd, supervised.page.fd])
        except (ChannelClosed, ProtocolError):
            return  # ``_on_warden`` sees that the warden has ended
        self._limit_start(supervised)

    def _limit_start(self, supervised: SupervisedDevice) -> None:
        """Give the device's next process, or the one that begins now, its time to get ready."""
        supervised.stop_waiting()
        words = f"not ready after {START_SECONDS:.0f} s"
        supervised.timer = self._loop.call_later(
            START_SECONDS, lambda: supervised.device.fail(words)
        )

    def _end_vm(self, reason: str) -> None:
        if self._ending or self._failure:
            return
        self._failure = reason
        self._on_death(reason)
