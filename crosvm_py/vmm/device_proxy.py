# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of a device: a ``VirtioBackend`` that outlives the device's process.

No vCPU waits for the process: calls only send messages, and the driver reads the configuration
from a copy kept here. When a process has ended and the next one has started, the next one is told
the state that the driver then expects: active queues, writes to the configuration, paused or not.
"""

from __future__ import annotations

from crosvm_py.care import DEFAULT_TIMEOUT_SECONDS
from crosvm_py.device_process import protocol
from crosvm_py.vmm.config_writes import ConfigWrites
from crosvm_py.vmm.death import DeviceDeath
from crosvm_py.vmm.hang_watch import HangWatch
from crosvm_py.vmm.link import GONE, DeviceLink
from crosvm_py.vmm.status import DeviceStatus
from devices.virtio.commands import Refused
from devices.virtio.counters import KICKS
from sys_util import log as logging
from sys_util.child_log import CallDenied, Crashed, LogLine
from sys_util.errors import ProtocolError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crosvm_py.kinds.kind import DeviceKind
    from crosvm_py.vmm.link import CommandResult
    from devices.virtio.backend import BackendEvents, QueueActivation, TransportState
    from devices.virtio.commands import Command
    from sys_util import socket
    from sys_util.event_loop import EventLoop
    from sys_util.wire import Message

log = logging.get_logger("crosvm.devices")

# The most that a device may write to the log, reports of crashes included. It is plenty at the
# debug level, and a device process that a guest has taken over cannot fill the host's disk soon.
_LINES: Final = 1000
_LINES_BYTES: Final = 128 * 1024
_LINES_SECONDS: Final = 10.0


class DeviceProcess:
    """One device, with or without a process. Owned by the machine; see ``VirtioBackend``."""

    def __init__(
        self,
        device_id: int,
        name: str,
        kind: DeviceKind,
        loop: EventLoop,
        lock: AbstractContextManager[bool],
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self.device_id = device_id
        self.name = name
        self.kind = kind
        self.pid = 0
        self.cgroup = ""  # the directory of its group, if it has one
        self.death = DeviceDeath()
        self.device_type = self.features = 0
        self.queue_sizes: tuple[int, ...] = ()
        self._config = b""
        self.early_writes = False
        self.cells: Sequence[int] = ()  # its counters, in memory that its process writes
        self.status = DeviceStatus()
        self.events: BackendEvents | None = None  # the transport, once there is one
        # What carries out requests of a driver of virtio-mem.
        self.on_blocks: Callable[[int, int, int], bool] | None = None
        self.on_driver: Callable[[str], None] = lambda _event: None  # told "activated", "reset"
        self._loop = loop
        self._lock = lock
        self._timeout = timeout_seconds
        self._link: DeviceLink | None = None
        self._lines = logging.LineLimit(_LINES, _LINES_SECONDS, _LINES_BYTES)
        self._log = log.limited()  # a guest can cause these messages again and again
        self._holds: list[Callable[[], None]] = []  # callers that wait for a pause or resume
        self._paused = False  # what the last pause() or resume() asked for
        fields = (kind.output_offset, kind.plain_fields)
        self._writes = ConfigWrites(self._pass_writes, self._serves, *fields)
        self._last_reset = self._resets_done = 0  # number of the last reset requested, completed
        self._kick_fds: dict[int, int] = {}  # of active queues, by index; the transport owns them
        self._hang_watch = HangWatch()
        self._on_ready: Callable[[], None] = lambda: None
        self._on_failure: Callable[[], None] = lambda: None
        self._waiters: list[Callable[[], None]] = []

    @property
    def config(self) -> bytes:
        """The copy that the driver reads; it contains the driver's writes at once."""
        return self._writes.over(self._config)

    @property
    def is_open(self) -> bool:
        """Whether there is a process, as far as we know."""
        return self._link is not None and self._link.is_open

    @property
    def link(self) -> DeviceLink | None:
        """The channel to a process that serves, if there is one."""
        return self._link if self._serves() else None

    def expect(self, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Set what is called for each process: when it is ready, and when its channel is closed."""
        self._on_ready = on_ready
        self._on_failure = on_failure

    def attach(self, sock: socket.socket) -> None:
        """Use a new process, at the other end of ``sock``. Owns ``sock`` from now on."""
        self.death = DeviceDeath()
        with self._lock:
            self._hang_watch.forget()
            self._link = DeviceLink(
                sock, self._loop, self._lock, self._timeout, self._take, self._on_end
            )

    def close(self) -> None:
        """Close the channel; the device process sees that and exits."""
        if self._link is not None and self._link.is_open:
            self._link.close()
            self._process_ended()

    def fail(self, verdict: str) -> None:
        """Close the channel to a process that broke a rule; ``verdict`` names the rule."""
        if self._link is not None:
            self._link.fail(verdict)

    def give_up(self) -> None:
        """Tell the driver that the device is lost: it gets no further process."""
        self.status.dead = True
        self._tell(lambda to: to.backend_lost())
        self._call_waiters()

    def say(self, level: int, module: str, line: str) -> None:
        """Log a line that the process sent, unless it has used up its limit."""
        logging.emit(level, module, f"{self.name}: {line}", self._lines)

    def when_served_again(self, then: Callable[[], None]) -> None:
        """Call ``then`` when the next process is ready, or when the device is given up."""
        self._waiters.append(then)

    def _call_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for then in waiters:
            then()

    def _process_ended(self) -> None:
        """Answer everybody who waits for a pause or a resume: the process has ended."""
        self.status.ready = False
        holds, self._holds = self._holds, []
        for hold in holds:
            hold()

    def _on_end(self, verdict: str) -> None:
        self.death.verdict = verdict
        self._process_ended()
        self._on_failure()

    # VirtioBackend: called by vCPU threads with the device-model lock held.

    def activate(self, features: int, queues: Sequence[QueueActivation]) -> None:
        self.status.activated(queues)
        self._kick_fds = {queue.index: queue.kick_fd for queue in queues}
        fields = tuple(protocol.without_fds(queue) for queue in queues)
        fds = [fd for queue in queues for fd in (queue.kick_fd, queue.call_fd)]
        self._request(lambda request: protocol.Activate(request, features, fields), fds=fds)
        self.on_driver("activated")

    def enable_queue(self, queue: QueueActivation) -> None:
        self.status.queue_enabled(queue)
        self._kick_fds[queue.index] = queue.kick_fd
        fields = protocol.without_fds(queue)
        fds = (queue.kick_fd, queue.call_fd)
        self._request(lambda request: protocol.EnableQueue(request, fields), fds=fds)

    def reset(self) -> None:
        self.status.reset()
        self._kick_fds = {}
        self._writes.forget_driver()
        self._last_reset = number = self._last_reset + 1

        def done() -> None:
            self._resets_done = number
            self._tell(lambda to: to.reset_done())

        self._request(protocol.Reset, then=done)
        self.on_driver("reset")

    def reset_queue(self, index: int) -> None:
        self.status.queue_stopped(index)
        self._kick_fds.pop(index, None)
        self._request(
            lambda request: protocol.ResetQueue(request, index),
            then=lambda: self._tell(lambda to: to.queue_reset_done(index)),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        if not self._writes.add(offset, data):
            self._log.warning("%s: emergency output is lost: the process is too slow", self.name)

    def _pass_writes(
        self, writes: tuple[protocol.ConfigWrite, ...], then: Callable[[], None]
    ) -> None:
        def carried_out() -> None:
            with self._lock:
                then()

        self._send(lambda request: protocol.WriteConfig(request, writes), then=carried_out)

    def is_writing(self) -> bool:
        """Whether the process has yet to carry out writes of the driver to the configuration."""
        return bool(len(self._writes))

    # The machine's own requests.

    def pause(self, then: Callable[[], None]) -> None:
        """Pause the device; ``then`` is called once no request of the guest is in flight.

        Without a process, that is at once; the next process starts paused.
        """
        self._paused = True
        self._hold(protocol.Pause, then)

    def resume(self, then: Callable[[], None]) -> None:
        """Resume the device; ``then`` is called when it serves again, or as for ``pause``."""
        self._paused = False
        self._hold(protocol.Resume, then)

    def finish(self, then: Callable[[], None]) -> None:
        """Have the process finish the requests it has begun and begin no more, before its end."""
        self._request(protocol.Pause, then=then)

    def _hold(self, build: Callable[[int], Message], then: Callable[[], None]) -> None:
        paused = self._paused

        def done() -> None:
            self._holds.remove(then)
            self.status.paused = paused
            then()

        if not self.status.ready:
            self.status.paused = paused
            then()
            return
        self._holds.append(then)
        self._request(build, then=done)

    def command(self, command: Command, then: CommandResult) -> None:
        """Send the device a command of the user; ``then`` is called once, in any case."""
        if self._link is None or not self.status.ready:
            then(Refused(GONE))
        else:
            self._link.command(command, then)

    def describe_transport(self) -> TransportState | None:
        """Return the state of the virtio transport, or ``None`` before the device is plugged in."""
        with self._lock:
            return None if self.events is None else self.events.describe()

    def check_health(self, timeout_seconds: float) -> None:
        """Ping the process, and end it if it serves no kick for ``timeout_seconds``.

        Called several times per timeout.
        """
        link = self._link
        if link is None or not self.status.ready:
            return
        if not link.pending:
            link.request(protocol.Ping)
        served = self.cells[KICKS] if self.cells else 0
        waited = self._hang_watch.unserved_seconds(self._watched_kicks(), served)
        if waited and waited >= timeout_seconds:
            self.fail(f"serves no queue for {timeout_seconds:.10g} s")

    def _watched_kicks(self) -> tuple[int, ...]:
        """Return the kick eventfds that the process has to read, if it has to read any now."""
        if self.status.needs_reset or self.kind.in_kernel:
            return ()
        with self._lock:
            return tuple(self._kick_fds.values())

    def _request(
        self,
        build: Callable[[int], Message],
        *,
        fds: Sequence[int] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        """Send a request, after the driver's earlier writes to the configuration, if possible."""
        with self._lock:
            self._writes.send_fields()
            self._send(build, fds=fds, then=then)

    def _send(
        self,
        build: Callable[[int], Message],
        *,
        fds: Sequence[int] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        if self._link is not None and self._serves():
            self._link.request(build, fds=fds, then=then)

    def _serves(self) -> bool:
        return self._link is not None and self._link.is_open and self.status.ready

    # Messages from the process.

    def _take(self, message: Message) -> None:
        match message:
            case LogLine(level, module, line):
                self.say(level, module, line)
            case CallDenied(number):
                self.death.denied_call = number
            case Crashed(report):
                self.death.report = report
            case protocol.Ready():
                self._take_ready(message)
            case _:
                if not self.status.ready:
                    raise ProtocolError(f"{type(message).__name__} before it was ready")
                self._take_event(message)

    def _take_ready(self, ready: protocol.Ready) -> None:
        if self.status.ready:
            raise ProtocolError("ready a second time")
        if not self.status.served:
            self.status.served = True
            self.device_type, self.features = ready.device_type, ready.features
            self.queue_sizes, self._config = ready.queue_sizes, ready.config
            self.early_writes = ready.early_writes
            self.status.ready = True
        else:
            self._take_over(ready)
        self._on_ready()
        self._call_waiters()

    def _take_over(self, ready: protocol.Ready) -> None:
        """Bring a new process to the state that the last one had."""
        facts = (ready.device_type, ready.features, ready.queue_sizes, ready.early_writes)
        known = (self.device_type, self.features, self.queue_sizes, self.early_writes)
        if facts != known or len(ready.config) != len(self._config):
            raise ProtocolError("not the device that its predecessor was")
        with self._lock:  # so that new requests of vCPUs come after those repeated here
            self._config = ready.config
            self.status.ready = True
            needs_reset = self.status.needs_reset
            self.status.paused = self._paused
            if self._paused:
                self._send(protocol.Pause)
            self._repeat_reset()
            self._writes.repeat()
            if self.events is not None:
                self.events.reactivate(self)
            self.status.needs_reset = needs_reset  # the driver has still to reset the device

    def _repeat_reset(self) -> None:
        """Send the last reset again if the ended process had not completed it."""
        number = self._last_reset

        def done() -> None:
            self._resets_done = number

        if self._resets_done != number:
            self._send(protocol.Reset, then=done)  # before the next driver's writes are repeated

    def _take_event(self, message: Message) -> None:
        match message:
            case protocol.QueueFailed(index, reason):
                if index >= len(self.queue_sizes):
                    raise ProtocolError(f"queue {index} of {len(self.queue_sizes)} failed")
                self._log.warning("%s queue %d: %s", self.name, index, reason)
                self.status.needs_reset = True
                self._tell(lambda to: to.set_needs_reset())
            case protocol.ConfigChanged(config, by_driver, number):
                if len(config) != len(self._config):
                    raise ProtocolError("configuration of another size")
                self._config = config
                if by_driver:
                    self._tell(lambda to: to.config_written(self.config))
                else:
                    self._tell(lambda to: to.config_changed(self.config))
                if self._link is not None:
                    self._link.send(protocol.ConfigTaken(number))
            case protocol.ChangeBlocks(kind, first, count):
                if self.on_blocks is None or self._link is None:
                    raise ProtocolError("a device without memory of its own asks for some")
                self._link.send(protocol.BlocksChanged(self.on_blocks(kind, first, count)))

    def _tell(self, call: Callable[[BackendEvents], None]) -> None:
        """Call the transport, if there is one, with the device-model lock held."""
        if self.events is not None:
            with self._lock:
                call(self.events)
