# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of a device: a ``VirtioBackend`` whose device is in a process, or in the next one.

No vCPU ever waits for the process: calls only send, and configuration is read from the copy kept
here. What is asked of a device between the end of one process and the start of the next is part of
what the next one is told: its queues as they are then, the driver's writes, whether it is paused.
"""

from __future__ import annotations

import select
import time

from crosvm_py.care import DEFAULT_TIMEOUT_SECONDS
from crosvm_py.device_process import protocol
from crosvm_py.vmm.config_writes import ConfigWrites
from crosvm_py.vmm.death import DeviceDeath
from crosvm_py.vmm.link import GONE, DeviceLink
from crosvm_py.vmm.status import DeviceStatus
from devices.virtio.commands import Refused
from devices.virtio.counters import KICKS
from sys_util import log as logging
from sys_util.errors import ProtocolError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crosvm_py.kinds.kind import DeviceKind
    from crosvm_py.vmm.link import CommandResult
    from devices.virtio.backend import BackendEvents, QueueActivation, TransportState
    from devices.virtio.commands import Command
    from sys_util.event_loop import EventLoop
    from sys_util.wire import Message

log = logging.get_logger("crosvm.devices")

# The most that a device may write to the log, last words included: plenty for one at the debug
# level, and yet one that was taken over fills no disk of the host soon.
_LINES: Final = 1000
_LINES_BYTES: Final = 128 * 1024
_LINES_SECONDS: Final = 10.0


class DeviceProcess:
    """One device, wherever the driver's calls go. Owned by the machine; see ``VirtioBackend``."""

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
        self.cells: Sequence[int] = ()  # its counters, which it writes by itself
        self.status = DeviceStatus()
        self.events: BackendEvents | None = None  # the transport, once there is one
        self._loop = loop
        self._lock = lock
        self._timeout = timeout_seconds
        self._link: DeviceLink | None = None
        self._lines = logging.LineLimit(_LINES, _LINES_SECONDS, _LINES_BYTES)
        self._log = log.limited()  # for what a guest can make its device say again and again
        self._holds: list[Callable[[], None]] = []
        self._paused = False  # as it was asked for last
        fields = (kind.output_offset, kind.plain_fields)
        self._writes = ConfigWrites(self._pass_writes, self._serves, *fields)
        self._last_reset = self._resets_done = 0  # the number of the last one asked for, and done
        self._kick_fds: dict[int, int] = {}  # of active queues; the transport's
        self._unserved: tuple[int, float] | None = None  # kicks served, since when no more
        self._on_ready: Callable[[], None] = lambda: None
        self._on_failure: Callable[[], None] = lambda: None
        self._waiters: list[Callable[[], None]] = []

    @property
    def config(self) -> bytes:
        """The copy that the driver reads: what it wrote is in it at once."""
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
        """Be told of each process: when it serves, and when it must be ended or has."""
        self._on_ready = on_ready
        self._on_failure = on_failure

    def attach(self, sock: socket.socket) -> None:
        """Speak to a new process through ``sock``, which becomes ours."""
        self.death = DeviceDeath()
        with self._lock:
            self._unserved = None
            self._link = DeviceLink(
                sock, self._loop, self._lock, self._timeout, self._take, self._on_end
            )

    def close(self) -> None:
        """Close the channel: the orderly end of the device process."""
        if self._link is not None and self._link.is_open:
            self._link.close()
            self._gone()

    def fail(self, verdict: str) -> None:
        """End the process for a rule that it broke."""
        if self._link is not None:
            self._link.fail(verdict)

    def give_up(self) -> None:
        """There is no process any more and will be none: the driver is told."""
        self.status.dead = True
        self._tell(lambda to: to.backend_lost())
        self._call_waiters()

    def say(self, level: int, module: str, line: str) -> None:
        """Log what the process said, as far as its limit goes."""
        logging.emit(level, module, f"{self.name}: {line}", self._lines)

    def when_served_again(self, then: Callable[[], None]) -> None:
        """Call ``then`` when there is another process, or it is clear that there will be none."""
        self._waiters.append(then)

    def _call_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for then in waiters:
            then()

    def _gone(self) -> None:
        """Nobody who asked the device for something waits for ever."""
        self.status.ready = False
        holds, self._holds = self._holds, []
        for hold in holds:
            hold()

    def _on_end(self, verdict: str) -> None:
        self.death.verdict = verdict
        self._gone()
        self._on_failure()

    # VirtioBackend: called by vCPU threads with the device-model lock held.

    def activate(self, features: int, queues: Sequence[QueueActivation]) -> None:
        self.status.activated(queues)
        self._kick_fds = {queue.index: queue.kick_fd for queue in queues}
        fields = tuple(protocol.without_fds(queue) for queue in queues)
        fds = [fd for queue in queues for fd in (queue.kick_fd, queue.call_fd)]
        self._request(lambda request: protocol.Activate(request, features, fields), fds=fds)

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
        """Whether the driver wrote something that the process has not carried out yet."""
        return bool(len(self._writes))

    # The machine's own requests.

    def pause(self, then: Callable[[], None]) -> None:
        """Hold the device; ``then`` is called when no request is in flight any more.

        That is at once when there is no process, and at the end of one that ends meanwhile: the
        next one starts paused.
        """
        self._paused = True
        self._hold(protocol.Pause, then)

    def resume(self, then: Callable[[], None]) -> None:
        """Let the device go on; ``then`` is called as for ``pause``."""
        self._paused = False
        self._hold(protocol.Resume, then)

    def finish(self, then: Callable[[], None]) -> None:
        """Have the process finish what it has begun; it serves nothing more, and is to be ended."""
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
        """Have the device do what the user asks for; ``then`` is called once, in any case."""
        if self._link is None or not self.status.ready:
            then(Refused(GONE))
        else:
            self._link.command(command, then)

    def describe_transport(self) -> TransportState | None:
        """Return what the transport knows, if there is one yet."""
        with self._lock:
            return None if self.events is None else self.events.describe()

    def check_health(self, timeout_seconds: float) -> None:
        """End a process that hangs: ask it for a sign of life, and see that it serves its queues.

        Called now and then; a process whose kicks stay unread for ``timeout_seconds`` is ended.
        """
        link = self._link
        if link is None or not self.status.ready:
            return
        if not link.pending:
            link.request(protocol.Ping)
        served = self.cells[KICKS] if self.cells else 0
        if not self._has_kicks():
            self._unserved = None
        elif self._unserved is None or self._unserved[0] != served:
            self._unserved = (served, time.monotonic())
        elif time.monotonic() - self._unserved[1] >= timeout_seconds:
            self.fail(f"serves no queue for {timeout_seconds:.10g} s")

    def _has_kicks(self) -> bool:
        """Return whether the driver kicked a queue, and nobody has noticed yet."""
        if self.status.needs_reset or self.kind.in_kernel:
            return False
        poll = select.poll()
        with self._lock:
            kick_fds = tuple(self._kick_fds.values())
        for fd in kick_fds:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _request(
        self,
        build: Callable[[int], Message],
        *,
        fds: Sequence[int] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        """Send a request to a process that serves; the next one gets to know by ``_take_over``.

        What the driver wrote before comes before it.
        """
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

    # What the process says.

    def _take(self, message: Message) -> None:
        match message:
            case protocol.LogLine(level, module, line):
                self.say(level, module, line)
            case protocol.CallDenied(number):
                self.death.denied_call = number
            case protocol.Crashed(report):
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
        """Let a new process go on where the last one stood."""
        facts = (ready.device_type, ready.features, ready.queue_sizes, ready.early_writes)
        known = (self.device_type, self.features, self.queue_sizes, self.early_writes)
        if facts != known or len(ready.config) != len(self._config):
            raise ProtocolError("not the device that its predecessor was")
        with self._lock:  # so that what a vCPU asks for comes after what it asked for before
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
            self.status.needs_reset = needs_reset  # as before, until the driver has done it

    def _repeat_reset(self) -> None:
        """Let the process forget a driver that its predecessor was still to forget."""
        number = self._last_reset

        def done() -> None:
            self._resets_done = number

        if self._resets_done != number:
            self._send(protocol.Reset, then=done)  # before what the next driver wrote

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

    def _tell(self, call: Callable[[BackendEvents], None]) -> None:
        """Call the transport as its rule is: with the device-model lock held."""
        if self.events is not None:
            with self._lock:
                call(self.events)
