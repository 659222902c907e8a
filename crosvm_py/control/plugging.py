# SPDX-License-Identifier: BSD-3-Clause
"""Plug a device into the running VM: the control process's part, which is to ask the others.

The vmm reserves a name and a slot. The opener opens what the device needs and orders it of the
warden. The vmm answers when the device is there.
"""

from __future__ import annotations

import os
from collections import deque

from crosvm_py.opener.protocol import (
    FROM_OPENER_CODEC,
    Made,
    Make,
    NotOpened,
    Open,
    Restrict,
    Restricted,
)
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.plug import Await, Confine, Plug, Release, Reserve, Reserved
from crosvm_py.requests.protocol import Done, Failed
from sys_util.channel import Channel
from sys_util.child_log import CallDenied, LogLine
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe
from sys_util.log import LineLimit, emit, get_logger
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.requests.protocol import Request, Response
    from sys_util import socket
    from sys_util.event_loop import EventLoop

_log = get_logger("crosvm.control")


class Plugger:
    """Serves ``Plug``. Owns the channel to the opener."""

    def __init__(
        self, loop: EventLoop, opener: socket.socket, ask: Callable[[Request], Pending]
    ) -> None:
        """``ask`` passes a request on to the vmm, or raises a ``VmmError``."""
        self._loop = loop
        self._ask = ask
        self._restricting: deque[Pending] = deque()  # who waits for the opener's answers
        self._making: dict[int, Callable[[str, int], None]] = {}  # who waits for files
        self._next = 0
        self._lines = LineLimit(burst=64, seconds=60.0)
        self._opener = Channel(opener, FROM_OPENER_CODEC)
        loop.add(opener.fileno(), lambda _events: self._on_opener())

    def plug(self, request: Plug, fds: Sequence[int] = ()) -> Pending:
        """Plug a device in. The answer is ``Plugged`` or ``Failed``.

        The descriptors ``fds`` stay the caller's, who keeps them open until the answer comes.

        Raises:
            VmmError: the VM takes no more requests now.
        """
        answer = Pending()

        def reserved(place: Response) -> None:
            if not isinstance(place, Reserved):
                answer.complete(place)
                return
            try:
                self._ask(Await(place.place)).deliver_to(answer.complete)
                self._open(request, place, fds)
            except VmmError as error:
                self._release(place.place, describe(error))

        wanted = Reserve(request.kind, request.id, request.slot, request.segment)
        self._ask(wanted).deliver_to(reserved)
        return answer

    def confine(self, request: Confine) -> Pending:
        """Have the opener keep to rules of Landlock. The answer is ``Done`` or ``Failed``.

        Raises:
            VmmError: the opener takes no more requests now.
        """
        self._send(Restrict(request.rules))
        answer = Pending()
        self._restricting.append(answer)
        return answer

    def make(self, path: bytes, then: Callable[[str, int], None]) -> None:
        """Have the opener make a file, and call ``then`` with why there is none, or with it.

        ``then`` owns the descriptor.

        Raises:
            VmmError: the opener takes no more requests now.
        """
        number = self._next
        self._send(Make(number, path))
        self._next = (number + 1) % (1 << 32)
        self._making[number] = then

    def _open(self, request: Plug, place: Reserved, fds: Sequence[int]) -> None:
        order = Open(
            *(place.place, place.name, request.kind, request.spec, request.path, place.cpus)
        )
        self._send(order, fds)

    def _send(self, message: Open | Make | Restrict, fds: Sequence[int] = ()) -> None:
        try:
            self._opener.send(message, fds)
        except (ChannelClosed, ProtocolError) as error:
            raise VmmError("the opener takes no more requests now") from error

    def _release(self, place: int, reason: str) -> None:
        """Tell the vmm that nothing was ordered; it answers who waits for the place."""
        try:
            self._ask(Release(place, reason))
        except VmmError as error:  # the vmm gives the place up when its time is over
            _log.error("place %d: %s", place, describe(error))

    def _on_opener(self) -> None:
        try:
            received = self._opener.receive()
        except (ChannelClosed, ProtocolError) as error:
            # The next control process has an opener again.
            reason = "has ended" if isinstance(error, ChannelClosed) else f"says {error}"
            _log.error("the opener %s: the control process starts again", reason)
            self._loop.stop()
            return
        if received is None:
            return
        message, fds = received
        if isinstance(message, Made) and message.number in self._making and len(fds) <= 1:
            then = self._making.pop(message.number)
            reason = message.reason or ("" if fds else "the opener sends no file")
            then(reason, fds.pop() if fds and not reason else -1)
        for fd in fds:
            os.close(fd)
        match message:
            case NotOpened(place, reason):
                self._release(place, reason)
            case Restricted(reason) if self._restricting:
                done = Failed(f"landlock_rules: {reason}") if reason else Done()
                self._restricting.popleft().complete(done)
            case LogLine(level, module, line):
                emit(level, module, line, self._lines)
            case CallDenied(call):
                _log.error("opener: killed by seccomp: system call %d, policy opener", call)
