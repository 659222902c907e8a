# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's end of the control process: requests come in, and what answers them is called."""

from __future__ import annotations

import os

from crosvm_py.control.protocol import (
    FROM_CONTROL_CODEC,
    MAX_ANSWER_BYTES,
    MAX_REQUESTS,
    Answered,
    Ask,
    Serving,
)
from crosvm_py.requests.catalogue import VMM_REQUESTS
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Failed
from seccomp import syscall_name
from sys_util import socket
from sys_util.channel import Channel
from sys_util.child_log import CallDenied, Crashed, LogLine
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe
from sys_util.log import LineLimit, emit, get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Protocol
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.requests.pending import Handler
    from crosvm_py.requests.protocol import Response
    from sys_util.wire import Codec, Message

log = get_logger("crosvm.control")


class Loop(Protocol):
    """The part of the event loop that the link needs."""

    def add(self, fd: int, callback: Callable[[int], None]) -> None:
        """Watch ``fd``."""

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``."""


class ControlLink:
    """Serves the control process that there is. Every method runs in the thread of the loop.

    Owns the channel to the control process, and closes the keeper's first.
    """

    def __init__(
        self,
        loop: Loop,
        keeper: Channel,
        handler: Handler,
        requests: Codec = VMM_REQUESTS,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_lost`` is called when a control process has ended, whose requests are void."""
        self.on_lost = on_lost
        self._loop = loop
        self._keeper = keeper
        self._handler = handler
        self._requests = requests
        self._fds: list[int] = []  # came with the request that is carried out now
        self._control: Channel | None = None
        self._pid = 0
        self._asked: set[int] = set()  # the numbers of requests that wait for their answers
        self._lines = LineLimit(burst=64, seconds=60.0)
        self._hears_keeper = True
        loop.add(keeper.fileno(), lambda _events: self._on_keeper())

    def move(self, loop: Loop, handler: Handler) -> None:
        """Serve on another loop, with another handler."""
        control = self._control
        if self._hears_keeper:
            self._loop.remove(self._keeper.fileno())
            loop.add(self._keeper.fileno(), lambda _events: self._on_keeper())
        if control is not None:
            self._loop.remove(control.fileno())
            loop.add(control.fileno(), lambda _events: self._on_control(control))
        self._loop = loop
        self._handler = handler

    def take_fds(self) -> list[int]:
        """Take the descriptors of the request that is carried out now; the caller owns them."""
        taken, self._fds = self._fds, []
        return taken

    def close(self) -> None:
        """Serve no more requests; keeper and control process end."""
        self._drop_keeper()
        self._keeper.close()  # first, so that the keeper expects the end of the other
        self._drop_control()

    def _on_keeper(self) -> None:
        try:
            received = self._keeper.receive()
        except (ChannelClosed, ProtocolError) as error:
            log.error("no control process can be started again: %s", _reason(error))
            self._drop_keeper()
            return
        if received is None:
            return
        message, fds = received
        if not isinstance(message, Serving) or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            log.error("the keeper sent %s with %d descriptors", type(message).__name__, len(fds))
            return
        self._drop_control()
        self._pid = message.pid
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fds[0])
        self._control = control = Channel(sock, FROM_CONTROL_CODEC)
        self._loop.add(control.fileno(), lambda _events: self._on_control(control))

    def _on_control(self, control: Channel) -> None:
        try:
            received = control.receive()
            if received is None:
                return
            message, self._fds = received
            try:
                self._take(control, message)
            finally:
                for fd in self.take_fds():
                    os.close(fd)
        except ChannelClosed:  # the keeper says why
            self._drop_control()
        except ProtocolError as error:
            self._end(str(error))

    def _take(self, control: Channel, message: Message) -> None:
        match message:
            case Ask():
                self._ask(control, message)
            case LogLine(level, module, line):
                emit(level, module, line, self._lines)
            case Crashed(report):
                self._end(report)
            case CallDenied(call):
                self._end(f"seccomp denied {syscall_name(call)}")

    def _end(self, last_words: str) -> None:
        """Log why the process ends, and hear no more of it: each has one such line."""
        log.error("control process (pid %d): %s", self._pid, last_words)
        self._drop_control()

    def _ask(self, control: Channel, ask: Ask) -> None:
        """Carry out a request.

        Raises:
            ProtocolError: the request is none, or there are too many.
        """
        if ask.number in self._asked or len(self._asked) >= MAX_REQUESTS:
            raise ProtocolError(f"request {ask.number} beside {len(self._asked)} others")
        request = self._requests.decode(ask.request)
        self._asked.add(ask.number)
        try:
            answer = judged("the request", self._handler, request)
        except VmmError as error:
            answer = Failed(describe(error)[:MAX_REASON_CHARS])
        if isinstance(answer, Pending):
            answer.deliver_to(lambda response: self._answer(control, ask.number, response))
        else:
            self._answer(control, ask.number, answer)

    def _answer(self, control: Channel, number: int, response: Response) -> None:
        if control is not self._control:
            return  # the one that asked has ended
        self._asked.discard(number)
        answer = encode(response)
        if len(answer) > MAX_ANSWER_BYTES:
            answer = encode(Failed("the answer is too long"))
        try:
            control.send(Answered(number, answer))
        except (ChannelClosed, ProtocolError) as error:
            self._end(_reason(error))

    def _drop_control(self) -> None:
        if self._control is not None:
            self._loop.remove(self._control.fileno())
            self._control.close()
            self._control = None
            self.on_lost()
        self._asked.clear()

    def _drop_keeper(self) -> None:
        if self._hears_keeper:
            self._hears_keeper = False
            self._loop.remove(self._keeper.fileno())


def _reason(error: Exception) -> str:
    return "it has ended" if isinstance(error, ChannelClosed) else str(error)
