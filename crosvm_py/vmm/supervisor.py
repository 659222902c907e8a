# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's care for its device processes: make them, and make them again when one ends."""

from __future__ import annotations

import os
import socket
import time

from crosvm_py.care import DEFAULT_CARE, NEVER
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.vmm.charge import Charge
from crosvm_py.vmm.device_proxy import DeviceProcess
from crosvm_py.warden import protocol
from seccomp import syscall_name
from sys_util import linux
from sys_util import log as logging
from sys_util.errors import ChannelClosed, ConfigError, ProtocolError, VmmError, describe
from sys_util.shared_page import SharedPage
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crosvm_py.care import Care
    from crosvm_py.kinds.order import DeviceOrder
    from crosvm_py.vmm.charge import RestartResult
    from crosvm_py.vmm.warden_proxy import WardenProcess
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory
    from sys_util.wire import Message

log = logging.get_logger("crosvm.devices")

# From the request for a process to its ``Ready``; a slow host needs a fraction of it.
START_SECONDS: Final = 60.0

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
        care: Care = DEFAULT_CARE,
    ) -> None:
        """``on_death`` is told once why the VM cannot go on."""
        self._loop = loop
        self._lock = lock
        self._warden = warden
        self._on_death = on_death
        self._care = care
        self._charges: list[Charge] = []
        self._memory_fd = -1
        self._waiting: set[int] = set()
        self._resizes: dict[int, ResizeResult] = {}  # what the warden has not answered
        self._resizing: set[int] = set()
        self._failure = ""
        self._sealed = False
        self._ending = False
        self._looks_after = False
        loop.add(warden.channel.fileno(), self._on_warden)

    @property
    def devices(self) -> tuple[DeviceProcess, ...]:
        """Every device, in the order of their slots."""
        return tuple(charge.device for charge in self._charges)

    def spawn(self, order: DeviceOrder, memory: GuestMemory) -> DeviceProcess:
        """Ask for a device process; ``wait_ready`` waits for all of them at once.

        The order's descriptors go to the warden: ours are closed.
        """
        device_id = len(self._charges)
        kind = DEVICE_KINDS[order.kind]
        device = DeviceProcess(
            device_id, order.name, kind, self._loop, self._lock, self._care.timeout_seconds
        )
        charge = Charge(device, SharedPage.create("crosvm_counters"), self._care.restarts)
        charge.resizable = bool(kind.resizable and order.max_file_bytes)
        device.cells = charge.page.cells
        device.expect(lambda: self._on_ready(charge), lambda: self._on_failure(charge))
        self._charges.append(charge)
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
        )
        try:
            self._order(message, [memory.fd, charge.page.fd, *order.fds])
        finally:
            for fd in order.fds:
                os.close(fd)
        return device

    def seal(self) -> None:
        """Have the warden refuse any further device; it has confined itself when this returns.

        Raises:
            VmmError: the warden has gone, or gives no answer.
        """
        self._order(protocol.Seal())
        self._serve_until(lambda: self._sealed, lambda: "warden")

    def report_denied_calls(self) -> None:
        """Have the warden told, in the last moment, which system call the vmm was denied."""
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
        syscall_name(0)  # loads the names while the devices start: under the filter it is too late
        self._serve_until(lambda: not self._waiting, self._names_waited_for)
        if not self._looks_after:
            self._looks_after = True
            self._look_after()

    def begin_resize(self, device: DeviceProcess) -> None:
        """Let nobody else give the disk another size until ``end_resize``.

        Raises:
            ConfigError: somebody does that now.
        """
        if device.device_id in self._resizing:
            raise ConfigError(f"{device.name}: another resize is under way")
        self._resizing.add(device.device_id)

    def end_resize(self, device: DeviceProcess) -> None:
        """The disk has its size, or keeps the one it had."""
        self._resizing.discard(device.device_id)

    def resize(self, device: DeviceProcess, size_bytes: int, then: ResizeResult) -> None:
        """Have the file that ``device`` writes resized; the device itself is not told.

        Raises:
            ConfigError: it writes none.
            VmmError: the warden has gone.
        """
        device_id = device.device_id
        if not self._charges[device_id].resizable:
            raise ConfigError("it writes no file that could be resized")
        self._order(protocol.Resize(device_id, size_bytes))
        self._resizes[device_id] = then

    def restart(self, device: DeviceProcess, then: RestartResult) -> None:
        """Give a device a new process, with its code read anew; ``then`` is told when it serves.

        Code that cannot be read leaves it the process that it has.

        Raises:
            ConfigError: there is no process that could be ended now.
            VmmError: the warden has gone.
        """
        charge = self._charges[device.device_id]
        if charge.wish is not None:
            raise ConfigError("another restart is under way")
        if not device.status.ready:
            raise ConfigError(f"it has no process that serves now ({device.status.word})")
        self._order(protocol.Renew(device.device_id))
        charge.wish = then

    def end(self) -> None:
        """End every device and the warden, in order; harmless when some are gone already."""
        self._ending = True
        for charge in self._charges:
            charge.device.close()
        self._loop.remove(self._warden.channel.fileno())
        self._warden.end()
        for charge in self._charges:
            charge.page.close()

    def _order(self, message: Message, fds: Sequence[int] = ()) -> None:
        try:
            self._warden.channel.send(message, fds)
        except ChannelClosed as error:
            self._on_warden(0)  # its last words
            raise VmmError(self._failure or "the warden has gone") from error

    def _look_after(self) -> None:
        """Look for processes that hang, now and then."""

        def look() -> None:
            for charge in self._charges:
                charge.device.check_health(self._care.timeout_seconds)
            self._look_after()

        self._loop.call_later(self._care.timeout_seconds / 4, look)

    def _serve_until(self, done: Callable[[], bool], whom: Callable[[], str]) -> None:
        def give_up() -> None:
            self._failure = f"{whom()}: not ready after {START_SECONDS:.0f} s"

        timer = self._loop.call_later(START_SECONDS, give_up)
        while not (done() or self._failure):
            self._loop.run_once()
        timer.cancel()
        if self._failure:
            raise VmmError(self._failure)

    def _names_waited_for(self) -> str:
        return ", ".join(self._charges[at].device.name for at in sorted(self._waiting))

    # What the warden says.

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
            self._end_with(f"warden (pid {self._warden.pid}): ended, and its devices with it")
        except VmmError as error:
            self._end_with(f"warden (pid {self._warden.pid}): {describe(error)}")

    def _take(self, message: Message, fds: list[int]) -> None:
        match message:
            case protocol.Spawned(device_id, pid):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fds[0])
                try:
                    device = self._without_process(device_id).device
                    device.pid = pid
                    device.attach(sock)
                except Exception:
                    sock.close()
                    raise
                log.debug("%s is process %d", device.name, pid)
            case protocol.SpawnFailed(device_id, reason):
                charge = self._without_process(device_id)
                charge.stop_waiting()
                self._on_lost(charge, f"{charge.device.name}: {reason}")
            case protocol.Exited(device_id, pid, status, cause):
                charge = self._charge(device_id)
                charge.device.pid = pid
                charge.device.death.status = status
                charge.device.death.cause = cause
                self._report(charge)
            case protocol.WardenDenied(number):
                denied = f"{syscall_name(number)} ({number}), policy warden"
                self._end_with(f"warden (pid {self._warden.pid}): killed by seccomp: {denied}")
            case protocol.CannotStart(reason):
                self._end_with(f"warden: {reason}")
            case _:
                self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        match message:
            case protocol.Sealed():
                self._sealed = True
            case protocol.Renewed(device_id, reason):
                self._on_renewed(self._charge(device_id), reason)
            case protocol.Resized(device_id, size_bytes, reason):
                then = self._resizes.pop(device_id, None)
                if then is None:
                    raise ProtocolError(f"device {device_id} was not to be resized")
                then(size_bytes, reason)

    def _charge(self, device_id: int) -> Charge:
        if device_id >= len(self._charges):
            raise ProtocolError(f"there is no device {device_id}")
        return self._charges[device_id]

    def _without_process(self, device_id: int) -> Charge:
        charge = self._charge(device_id)
        if charge.device.is_open:
            raise ProtocolError(f"device {device_id} has a process")
        return charge

    # The life of a process.

    def _on_ready(self, charge: Charge) -> None:
        now = time.monotonic()
        charge.ready(now)
        self._waiting.discard(charge.device.device_id)
        device = charge.device
        if device.status.restarts:
            took_ms = 1000 * (now - charge.ended_at)
            facts = (device.name, device.pid, took_ms, device.status.restarts)
            charge.log.info("%s: process %d goes on after %.0f ms (restart %d)", *facts)
        charge.fulfil("")

    def _on_failure(self, charge: Charge) -> None:
        """The channel is closed: the process broke a rule, or has ended by itself.

        Or it only closed the channel: whatever it is, it does not live on without one. To one that
        has ended this makes no difference.
        """
        charge.ended_at = time.monotonic()
        self._kill(charge)
        self._report(charge)

    def _on_renewed(self, charge: Charge, reason: str) -> None:
        """End a process on purpose, if the code of the next one can be read."""
        device = charge.device
        if reason:
            charge.log.error("%s: is not restarted: %s", device.name, reason)
            charge.fulfil(f"{device.name}: {reason}")
        elif charge.wish is not None and device.status.ready:  # else it has ended meanwhile
            charge.on_purpose = True
            device.finish(lambda: self._end_process(charge))

    def _end_process(self, charge: Charge) -> None:
        """End a process that has finished what it had begun, as somebody wishes."""
        if charge.device.is_open:
            charge.ended_at = time.monotonic()
            charge.device.close()
            self._kill(charge)
            self._report(charge)

    def _kill(self, charge: Charge) -> None:
        try:
            self._warden.channel.send(protocol.Kill(charge.device.device_id))
        except (ChannelClosed, ProtocolError):
            return  # a warden that has gone took its devices along; one that hangs is ended with us

    def _report(self, charge: Charge) -> None:
        """Say how a process ended once both its last words and its status are here."""
        device = charge.device
        if device.is_open or device.death.status is None or self._ending:
            return
        charge.stop_waiting()
        if not device.death.is_told_in_one_line:
            for line in device.death.report.splitlines():
                device.say(logging.ERROR, log.module, line)
        if charge.on_purpose:
            charge.on_purpose = False
            log.info("%s (pid %d): ended to be restarted", device.name, device.pid)
            self._make_again(charge)
        else:
            charge.check_state()
            cause = device.death.describe(device.kind.policy_name)
            self._on_lost(charge, f"{device.name} (pid {device.pid}): {cause}")

    def _on_lost(self, charge: Charge, line: str) -> None:
        """A process has ended that nobody ended on purpose, or could not be made."""
        if not charge.device.status.served or self._care.restarts == NEVER:
            self._end_with(line)
            return
        charge.log.error("%s", line)
        charge.fulfil(line)
        delay = charge.budget.next_delay(time.monotonic())
        if delay is None:
            facts = (charge.device.name, charge.budget.describe())
            log.error("%s: is lost to the guest: restarted %s (--device-restart)", *facts)
            charge.device.give_up()
        elif delay:
            self._loop.call_later(delay, lambda: self._make_again(charge))
        else:
            self._make_again(charge)

    def _make_again(self, charge: Charge) -> None:
        if self._ending or self._failure:
            return
        charge.device.status.restarts += 1
        charge.is_ready = False
        message = protocol.Respawn(charge.device.device_id)
        try:
            self._warden.channel.send(message, [self._memory_fd, charge.page.fd])
        except (ChannelClosed, ProtocolError):
            return  # the end of the warden is told by its channel
        charge.timer = self._loop.call_later(
            START_SECONDS, lambda: charge.device.fail(f"not ready after {START_SECONDS:.0f} s")
        )

    def _end_with(self, reason: str) -> None:
        if self._ending or self._failure:
            return
        self._failure = reason
        self._on_death(reason)
