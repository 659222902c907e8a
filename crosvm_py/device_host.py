# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of a device process: a ``VirtioBackend`` whose device is elsewhere.

The process is not trusted. What it sends is decoded strictly, what it is asked has a deadline,
and the first thing that it does wrong ends it. No vCPU ever waits for it: calls only send, and
configuration is read from the copy kept here.
"""

from __future__ import annotations

import os
import signal
import time

from crosvm_py import device_protocol as protocol
from crosvm_py.device_status import DeviceStatus
from seccomp import syscall_name
from sys_util import log as logging
from sys_util.channel import Channel, ChannelClosed, socket_pair
from sys_util.errors import ProtocolError
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from devices.virtio.backend import BackendEvents, QueueActivation
    from sys_util.event_loop import EventLoop
    from sys_util.wire import Message

log = logging.get_logger("crosvm.devices")

# The longest that an answer may take: a disk's flush on a slow host fits, a hung process does not.
DEADLINE_SECONDS: Final = 30.0
_CHECK_SECONDS: Final = 1.0

# The most that one turn of the loop takes from one device, so that none starves the others.
_MESSAGES_PER_TURN: Final = 64

# The most that a device may write to the log: plenty for one at the debug level, and yet one that
# was taken over fills no disk of the host soon.
_LINES: Final = 1000
_LINES_SECONDS: Final = 10.0

# Drivers write to configuration one field, or one emergency character, at a time. A guest that does
# it faster than the device reads loses what it writes, and not the device.
_MAX_CONFIG_WRITES: Final = 64

_GONE: Final = "the device process has ended"


# What is called with the outcome of a command: whether it was done, and the fields of its result or
# ``{"error": reason}``. They come from the device: check each of them where it is used.
CommandResult: TypeAlias = "Callable[[bool, dict[str, object]], None]"


class DeviceDeath:
    """What is known of the end of a device process, from itself and from the warden."""

    def __init__(self) -> None:
        self.verdict = ""  # ours: why we ended it
        self.denied_call: int | None = None
        self.report = ""
        self.status: int | None = None  # os.waitstatus_to_exitcode's

    def describe(self, policy_name: str) -> str:
        """Say the cause in one line; the device's own words come after it."""
        if self.verdict:
            return f"ended by the vmm: {self.verdict}"
        if self.denied_call is not None:
            name = syscall_name(self.denied_call)
            return f"killed by seccomp: {name} ({self.denied_call}), policy {policy_name}"
        if self.status is not None and self.status < 0:
            return f"killed by {_signal_name(-self.status)}"
        return "ended" if self.status is None else f"exited with status {self.status}"


class DeviceProcess:
    """One device, wherever the driver's calls go. Owned by the machine; see ``VirtioBackend``."""

    def __init__(
        self,
        device_id: int,
        name: str,
        policy_name: str,
        loop: EventLoop,
        lock: AbstractContextManager[bool],
    ) -> None:
        self.device_id = device_id
        self.name = name
        self.policy_name = policy_name
        self.pid = 0
        self.death = DeviceDeath()
        self.device_type = 0
        self.features = 0
        self.queue_sizes: tuple[int, ...] = ()
        self.config = b""
        self.cells: Sequence[int] = ()  # its counters, which it writes by itself
        self.status = DeviceStatus()
        self.events: BackendEvents | None = None  # the transport, once there is one
        self._loop = loop
        self._lock = lock
        ours, self.their_end = socket_pair()
        self._channel = Channel(ours, protocol.VMM_CODEC)
        self._open = True
        self._lines = logging.LineLimit(_LINES, _LINES_SECONDS)
        self._log = log.limited()  # for what a guest can make its device say again and again
        self._next_id = 0
        self._pending: dict[int, tuple[float, Callable[[], None]]] = {}
        self._commands: dict[int, CommandResult] = {}
        self._holds: list[Callable[[], None]] = []
        self._watching = False
        self._on_ready: Callable[[], None] = _nothing
        self._on_failure: Callable[[], None] = _nothing

    @property
    def is_open(self) -> bool:
        """Whether the process may still be there."""
        return self._open

    def start(self, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Listen to the process; ``on_failure`` is called once when it must be ended or has."""
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._loop.add(self._channel.fileno(), self._on_readable)

    def close(self) -> None:
        """Close the channel: the orderly end of the device process."""
        if self._open:
            self._open = False
            self.status.dead = True
            self._loop.remove(self._channel.fileno())
            self._channel.close()
            self._answer_for_the_dead()

    def _answer_for_the_dead(self) -> None:
        """Nobody who asked the device for something waits for ever."""
        commands, self._commands = self._commands, {}
        holds, self._holds = self._holds, []
        for command in commands.values():
            command(False, {"error": _GONE})
        for hold in holds:
            hold()

    # VirtioBackend: called by vCPU threads with the device-model lock held.

    def activate(self, features: int, queues: Sequence[QueueActivation]) -> None:
        self.status.activated(queues)
        fields = tuple(protocol.without_fds(queue) for queue in queues)
        fds = [fd for queue in queues for fd in (queue.kick_fd, queue.call_fd)]
        self._request(lambda request: protocol.Activate(request, features, fields), fds=fds)

    def enable_queue(self, queue: QueueActivation) -> None:
        self.status.queue_enabled(queue)
        fields = protocol.without_fds(queue)
        fds = (queue.kick_fd, queue.call_fd)
        self._request(lambda request: protocol.EnableQueue(request, fields), fds=fds)

    def reset(self) -> None:
        self.status.reset()
        self._request(protocol.Reset, then=lambda: self._tell(lambda to: to.reset_done()))

    def reset_queue(self, index: int) -> None:
        self.status.queue_stopped(index)
        self._request(
            lambda request: protocol.ResetQueue(request, index),
            then=lambda: self._tell(lambda to: to.queue_reset_done(index)),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        if len(self._pending) < _MAX_CONFIG_WRITES:
            self._request(lambda request: protocol.WriteConfig(request, offset, data))

    # The machine's own requests.

    def pause(self, then: Callable[[], None]) -> None:
        """Hold the device; ``then`` is called when no request is in flight any more.

        That is at once for a device that is dead, and at its end for one that dies meanwhile.
        """
        self._hold(protocol.Pause, then, paused=True)

    def resume(self, then: Callable[[], None]) -> None:
        """Let the device go on; ``then`` is called as for ``pause``."""
        self._hold(protocol.Resume, then, paused=False)

    def _hold(
        self, build: Callable[[int], Message], then: Callable[[], None], *, paused: bool
    ) -> None:
        if not self._open:
            then()
            return

        def done() -> None:
            self._holds.remove(then)
            self.status.paused = paused
            then()

        self._holds.append(then)
        self._request(build, then=done)

    def command(self, verb: str, arguments: dict[str, object], then: CommandResult) -> None:
        """Have the device do what the user asks for; ``then`` is called once, in any case."""
        if not self._open:
            then(False, {"error": _GONE})
            return
        packed = protocol.pack_fields(arguments)
        request_id = self._request(lambda request: protocol.Command(request, verb, packed))
        self._commands[request_id] = then

    def _request(
        self,
        build: Callable[[int], Message],
        *,
        fds: Sequence[int] = (),
        then: Callable[[], None] | None = None,
    ) -> int:
        """Send a request and return its number."""
        if not self._open:
            return 0  # a dead device answers nothing; the machine knows already
        self._next_id = (self._next_id + 1) & 0xFFFF_FFFF
        request_id = self._next_id
        self._pending[request_id] = (time.monotonic() + DEADLINE_SECONDS, then or _nothing)
        try:
            self._channel.send(build(request_id), fds)
        except ChannelClosed:
            return request_id  # the loop reads the end, and what came before it
        except ProtocolError as error:
            reason = str(error)
            self._loop.call_soon_threadsafe(lambda: self._fail(reason))
            return request_id
        if not self._watching:
            self._watching = True
            self._loop.call_soon_threadsafe(self._watch_deadlines)
        return request_id

    def _watch_deadlines(self) -> None:
        """Look again while anything is pending; runs in the loop."""
        self._watching = False  # before the look: a request of another thread is seen, or watches
        if not self._open or not self._pending:
            return
        oldest = min(deadline for deadline, _ in tuple(self._pending.values()))
        if time.monotonic() > oldest:
            self._fail(f"no answer within {DEADLINE_SECONDS:.0f} s")
            return
        self._watching = True
        self._loop.call_later(_CHECK_SECONDS, self._watch_deadlines)

    def _on_readable(self, _events: int) -> None:
        try:
            for _ in range(_MESSAGES_PER_TURN):
                received = self._channel.receive()
                if received is None:
                    return
                message, fds = received
                if fds:
                    _close_all(fds)
                    raise ProtocolError("a device sends no descriptors")
                self._take(message)
        except ChannelClosed:
            self._fail("")
        except ProtocolError as error:
            self._fail(str(error))

    def _take(self, message: Message) -> None:
        match message:
            case protocol.LogLine(level, module, line):
                logging.emit(level, module, f"{self.name}: {line}", self._lines)
            case protocol.CallDenied(number):
                self.death.denied_call = number
            case protocol.Crashed(report):
                self.death.report = report
            case protocol.Ready(device_type, features, queue_sizes, config):
                if self.status.ready:
                    raise ProtocolError("ready a second time")
                self.status.ready = True
                self.device_type, self.features = device_type, features
                self.queue_sizes, self.config = queue_sizes, config
                self._on_ready()
            case _:
                if not self.status.ready:
                    raise ProtocolError(f"{type(message).__name__} before it was ready")
                self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        match message:
            case protocol.Done(request_id):
                if request_id in self._commands or request_id not in self._pending:
                    raise ProtocolError(f"answer to request {request_id}, which was not asked")
                self._pending.pop(request_id)[1]()
            case protocol.Answer(request_id, ok, result):
                if request_id not in self._commands:
                    raise ProtocolError(f"result of request {request_id}, which was no command")
                fields = protocol.unpack_fields(result)
                del self._pending[request_id]
                self._commands.pop(request_id)(ok, fields)
            case protocol.QueueFailed(index, reason):
                self._log.warning("%s queue %d: %s", self.name, index, reason)
                self.status.needs_reset = True
                self._tell(lambda to: to.set_needs_reset())
            case protocol.ConfigChanged(config, by_driver):
                if len(config) != len(self.config):
                    raise ProtocolError("configuration of another size")
                self.config = config
                if by_driver:
                    self._tell(lambda to: to.config_written(config))
                else:
                    self._tell(lambda to: to.config_changed(config))

    def _tell(self, call: Callable[[BackendEvents], None]) -> None:
        """Call the transport as its rule is: with the device-model lock held."""
        if self.events is not None:
            with self._lock:
                call(self.events)

    def _fail(self, verdict: str) -> None:
        if self._open:
            self.death.verdict = verdict
            self.close()
            self._on_failure()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"


def _nothing() -> None:
    """Do nothing."""


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
