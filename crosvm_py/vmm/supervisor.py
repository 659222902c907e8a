# SPDX-License-Identifier: BSD-3-Clause
"""Supervise the device processes: have the warden start them, and restart those that end."""

from __future__ import annotations

import os

from crosvm_py.care import DEFAULT_CARE
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.vmm.device_proxy import DeviceProcess
from crosvm_py.vmm.lives import START_SECONDS, Lives
from crosvm_py.vmm.resizing import Resizing
from crosvm_py.vmm.supervised import SupervisedDevice
from crosvm_py.warden import protocol
from seccomp import syscall_name
from sys_util import linux, socket
from sys_util import log as logging
from sys_util.errors import ChannelClosed, ConfigError, ProtocolError, VmmError, describe
from sys_util.shared_page import SharedPage
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING

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


class Supervisor(Lives):
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
        super().__init__(loop, warden, on_death, care)
        self._lock = lock
        self._supervised: dict[int, SupervisedDevice] = {}  # by the device's number
        self.on_added: Callable[[protocol.Added], None] = self.forget
        self._resizing = Resizing(self._order)
        self._sealed = False
        self._watches_health = False
        loop.add(warden.channel.fileno(), self._on_warden)

    @property
    def devices(self) -> tuple[DeviceProcess, ...]:
        """Every device, in the order in which they came."""
        every = self._supervised.values()
        return tuple(supervised.device for supervised in every if not supervised.is_removed)

    @property
    def all_devices(self) -> tuple[DeviceProcess, ...]:
        """Every device, those included that were removed and of which something is left."""
        return tuple(supervised.device for supervised in self._supervised.values())

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left of any device that was removed."""
        return not any(supervised.is_removed for supervised in self._supervised.values())

    def spawn(
        self, order: DeviceOrder, memory: GuestMemory, page: SharedPage | None = None
    ) -> DeviceProcess:
        """Ask the warden for a device process; ``wait_ready`` waits for all of them at once.

        The descriptors of ``order`` are sent to the warden and closed here. ``page`` is for its
        counters, and then the caller's to close; by default one is made.
        """
        device_id = len(self._supervised)
        writes_file = bool(order.max_file_bytes)
        supervised = self._record(device_id, order.name, order.kind, page, writes_file=writes_file)
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
        return supervised.device

    def _record(
        self,
        device_id: int,
        name: str,
        kind_name: str,
        page: SharedPage | None,
        *,
        writes_file: bool,
    ) -> SupervisedDevice:
        kind = DEVICE_KINDS[kind_name]
        device = DeviceProcess(
            device_id, name, kind, self._loop, self._lock, self._care.timeout_seconds
        )
        supervised = SupervisedDevice(
            device, page or SharedPage.create("crosvm_counters"), self._care.restarts
        )
        supervised.owns_page = page is None
        supervised.resizable = bool(kind.resizable and writes_file)
        device.cells = supervised.page.cells
        device.expect(lambda: self._on_ready(supervised), lambda: self._on_failure(supervised))
        self._supervised[device_id] = supervised
        return supervised

    def add(
        self, added: protocol.Added, page: SharedPage, then: Callable[[str], None]
    ) -> DeviceProcess:
        """Have the process of a device made that the warden has been ordered meanwhile.

        Args:
            added: the warden's message; its number and its kind are new and known.
            page: for its counters; the caller owns it and must keep it until ``forget`` is done.
            then: called once, with "" when the device is ready, or with the reason why it never is.
        """
        supervised = self._record(
            added.device_id, added.name, added.kind, page, writes_file=added.writes_file
        )
        supervised.on_first = then
        self._send_respawn(supervised)
        return supervised.device

    def remove(self, device: DeviceProcess, then: Callable[[], None]) -> None:
        """End a device for good; its transport is gone. ``then``: nothing is left of it."""
        supervised = self._supervised[device.device_id]
        supervised.is_removed, supervised.on_forgotten = True, then
        supervised.stop_waiting()
        supervised.answer_restart(f"{device.name}: is removed")
        device.events = None
        device.close()
        device.give_up()
        self.forget(device)

    def forget(self, device: DeviceProcess | protocol.Added) -> None:
        """Have the warden end a device that we do not know, or not any more."""
        try:
            self._warden.channel.send(protocol.Forget(device.device_id))
        except (ChannelClosed, ProtocolError):
            return  # ``_on_warden`` sees that the warden has ended

    def seal(self, memory: GuestMemory | None = None) -> None:
        """Have the warden confine itself and refuse further devices; return when it has done so.

        With ``memory`` the opener can still add devices, which use that guest memory.

        Raises:
            VmmError: the warden has ended, or does not answer.
        """
        message = protocol.Seal()
        if memory is not None:
            self._memory_fd = memory.fd
            message = protocol.Seal(memory.regions, memory.huge_pages)
        self._order(message)
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
        self._resizing.end(device)

    def resize(self, device: DeviceProcess, size_bytes: int, then: ResizeResult) -> None:
        """Have the warden resize the file that ``device`` writes; see ``Resizing.resize``."""
        self._resizing.resize(self._supervised.get(device.device_id), size_bytes, then)

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
        for supervised in self._supervised.values():
            supervised.device.close()
        self._loop.remove(self._warden.channel.fileno())
        self._warden.end()
        for supervised in self._supervised.values():
            if supervised.owns_page:
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
            for supervised in tuple(self._supervised.values()):
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
                    self._on_spawned(self._without_process(device_id), pid, sock)
                except Exception:
                    sock.close()
                    raise
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
            case protocol.Added(device_id):
                if device_id in self._supervised or message.kind not in DEVICE_KINDS:
                    raise ProtocolError(f"device {device_id} is added twice, or of no kind")
                self.on_added(message)
            case protocol.Forgotten(device_id):
                supervised = self._supervised.pop(device_id, None)
                if supervised is not None:  # otherwise it was forgotten as soon as it was added
                    supervised.on_forgotten()
                    if supervised.owns_page:
                        supervised.page.close()

    def _supervised_device(self, device_id: int) -> SupervisedDevice:
        if device_id not in self._supervised:
            raise ProtocolError(f"there is no device {device_id}")
        return self._supervised[device_id]

    def _without_process(self, device_id: int) -> SupervisedDevice:
        supervised = self._supervised_device(device_id)
        if supervised.device.is_open:
            raise ProtocolError(f"device {device_id} has a process")
        return supervised
