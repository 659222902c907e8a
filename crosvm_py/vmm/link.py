# SPDX-License-Identifier: BSD-3-Clause
"""One channel to one device process: requests, their answers, and the deadlines of those.

The process is not trusted. What it sends is decoded strictly, every request to it has a deadline,
and its first mistake ends the link. A new process gets a new link.
"""

from __future__ import annotations

import os
import time

from crosvm_py.device_process import protocol
from devices.virtio.backend import DeviceWords
from devices.virtio.commands import Refused
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from devices.virtio.commands import Command
    from sys_util import socket
    from sys_util.event_loop import EventLoop
    from sys_util.wire import Message

_CHECK_SECONDS: Final = 1.0

# The most messages read from one device in one turn of the loop, so that it cannot starve others.
_MESSAGES_PER_TURN: Final = 64

GONE: Final = "the device process has ended"

# Called with the answer to a command, or with ``Refused``.
CommandResult: TypeAlias = "Callable[[Message], None]"

# Called with the description of a device, or with None if the device sends none in time.
DescriptionResult: TypeAlias = "Callable[[DeviceWords | None], None]"


class Contact(NamedTuple):
    """When a process last sent a message, how many requests are unanswered, and for how long."""

    silent_seconds: float
    unanswered: int
    oldest_seconds: float


class DeviceLink:
    """The vmm's end of a channel.

    Any thread may call ``request`` and ``send``; everything else runs in the loop's thread. The
    device-model lock guards the socket and the pending requests: every sender holds it, and so does
    the loop when it closes the socket. So no thread sends through a closed or reused descriptor.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: EventLoop,
        lock: AbstractContextManager[bool],
        timeout_seconds: float,
        take: Callable[[Message], None],
        on_end: Callable[[str], None],
    ) -> None:
        """Listen to the process.

        Args:
            sock: the vmm's end; it becomes the link's.
            loop: where answers are read.
            lock: the device-model lock, a recursive one.
            timeout_seconds: the most time that an answer may take.
            take: gets each message that answers no request; may raise any exception.
            on_end: called once when the link ends without ``close``, with the rule that the
                process broke, or with "" if the process closed the channel.
        """
        self._channel = Channel(sock, protocol.VMM_CODEC)
        self._loop = loop
        self._lock = lock
        self._timeout = timeout_seconds
        self._take_other = take
        self._on_end = on_end
        self._open = True
        self._stuck = False  # a message could not be sent; the loop is about to close the link
        self._next_id = 0
        self._pending: dict[int, tuple[float, Callable[[], None]]] = {}
        self._commands: dict[int, tuple[type[Message], CommandResult]] = {}
        self._questions: dict[int, DescriptionResult] = {}
        self._heard_at = time.monotonic()  # when the last message came from the process
        self._watching = False
        loop.add(self._channel.fileno(), self._on_readable)

    @property
    def is_open(self) -> bool:
        """Whether the channel is open, as far as we know."""
        return self._open

    @property
    def contact(self) -> Contact:
        """How the process has answered lately, for a report to the user."""
        now = time.monotonic()
        with self._lock:
            deadlines = [deadline for deadline, _ in self._pending.values()]
        oldest = now + self._timeout - min(deadlines) if deadlines else 0.0
        return Contact(now - self._heard_at, len(deadlines), oldest)

    @property
    def pending(self) -> int:
        """How many requests wait for an answer."""
        return len(self._pending)

    def close(self) -> None:
        """Close the channel, at which the process exits; pending commands are refused."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._loop.remove(self._channel.fileno())
            self._channel.close()
            self._pending.clear()
            questions, self._questions = self._questions, {}
            commands, self._commands = self._commands, {}
        for _, then in commands.values():
            then(Refused(GONE))
        for question in questions.values():
            question(None)

    def fail(self, verdict: str) -> None:
        """Close the link because the process broke the rule ``verdict``, and call ``on_end``."""
        if self._open:
            self.close()
            self._on_end(verdict)

    def command(self, command: Command, then: CommandResult) -> None:
        """Send a command of the user; ``then`` is called once, in any case."""
        request_id = self.request(lambda request: protocol.Order(request, command))
        if self._open:
            self._commands[request_id] = (command.ANSWER, then)
        else:
            then(Refused(GONE))

    def describe(self, within_seconds: float, then: DescriptionResult) -> None:
        """Ask the device for the state of its queues; ``then`` is called once, in any case."""
        request_id = self.request(protocol.Describe)
        if not self._open:
            then(None)
            return
        self._questions[request_id] = then

        def give_up() -> None:
            if request_id in self._questions:
                self._questions[request_id] = _ignore  # a late answer is still allowed
                then(None)

        self._loop.call_later(within_seconds, give_up)

    def request(
        self,
        build: Callable[[int], Message],
        *,
        fds: Sequence[int] = (),
        then: Callable[[], None] | None = None,
    ) -> int:
        """Send a request and return its number; ``then`` is called when it is carried out."""
        with self._lock:
            self._next_id = (self._next_id + 1) & 0xFFFF_FFFF
            if not self._open:
                return self._next_id
            self._pending[self._next_id] = (time.monotonic() + self._timeout, then or _nothing)
            if self.send(build(self._next_id), fds) and not self._watching:
                self._watching = True
                self._loop.call_soon_threadsafe(self._watch_deadlines)
            return self._next_id

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send a message; return False if that failed, and then the link ends soon."""
        with self._lock:
            if not self._open or self._stuck:
                return False
            try:
                self._channel.send(message, fds)
            except ChannelClosed:
                return False  # the loop reads the last messages and the end of the channel
            except ProtocolError as error:
                self._stuck, reason = True, str(error)
                self._loop.call_soon_threadsafe(lambda: self.fail(reason))
                return False
            return True

    def _watch_deadlines(self) -> None:
        """End the link if an answer is late; check again while requests are pending."""
        with self._lock:
            self._watching = bool(self._pending)
            oldest = min((deadline for deadline, _ in self._pending.values()), default=None)
        if oldest is None:
            return
        if time.monotonic() > oldest:
            self.fail(f"no answer within {self._timeout:.10g} s")
        else:
            self._loop.call_later(min(_CHECK_SECONDS, self._timeout / 4), self._watch_deadlines)

    def _on_readable(self, _events: int) -> None:
        try:
            for _ in range(_MESSAGES_PER_TURN):
                received = self._channel.receive() if self._open else None
                if received is None:
                    return
                message, fds = received
                self._heard_at = time.monotonic()
                if fds:
                    _close_all(fds)
                    raise ProtocolError("a device sends no descriptors")
                judged(f"its {type(message).__name__}", self._take, message)
        except ChannelClosed:
            self.fail("")
        except VmmError as error:
            self.fail(describe(error))

    def _take(self, message: Message) -> None:
        match message:
            case protocol.Done(request_id):
                if request_id in self._commands or request_id in self._questions:
                    raise ProtocolError(f"answer to request {request_id}, which was not asked")
                self._answered(request_id)()
            case protocol.Answer(request_id, answer):
                if request_id not in self._commands:
                    raise ProtocolError(f"result of request {request_id}, which was no command")
                kind, then = self._commands[request_id]
                if not isinstance(answer, (kind, Refused)):
                    raise ProtocolError(f"{type(answer).__name__} instead of {kind.__name__}")
                self._answered(request_id)
                del self._commands[request_id]
                then(answer)
            case protocol.Description(request_id):
                if request_id not in self._questions:
                    raise ProtocolError(f"description {request_id}, which was not asked")
                self._answered(request_id)
                words = DeviceWords(message.held, message.timer_ms, message.queues)
                self._questions.pop(request_id)(words)
            case _:
                self._take_other(message)

    def _answered(self, request_id: int) -> Callable[[], None]:
        with self._lock:
            if request_id not in self._pending:
                raise ProtocolError(f"answer to request {request_id}, which was not asked")
            return self._pending.pop(request_id)[1]


def _nothing() -> None:
    """Do nothing."""


def _ignore(_words: DeviceWords | None) -> None:
    """Drop a description that came too late."""


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
