# SPDX-License-Identifier: BSD-3-Clause
"""Connections that the guest has asked for and that have no answer yet."""

from __future__ import annotations

import errno
import os
from collections import deque

from devices.virtio.vsock.broker import Broker
from devices.virtio.vsock.packet import SocketType
from sys_util.errors import VmmError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.context import DeviceContext
    from devices.virtio.vsock.packet import Header
    from sys_util import socket

    OnConnected = Callable[[Header, socket.socket], None]
    OnRefused = Callable[[Header], None]

# An attempt has two seconds, as Linux gives a connection. While the backlog of its listener is
# full, it is repeated in every tick. Time is counted in ticks, which do not come while the guest is
# paused: so no attempt runs out then.
TICK_SECONDS: Final = 0.02
ATTEMPT_TICKS: Final = 100

# After ten seconds without an answer the broker counts as hung.
BROKER_TICKS: Final = 500

# Errors that the user can do something about. Nearly all others mean that nobody listens.
_WARNINGS: Final = {
    errno.EACCES: os.strerror(errno.EACCES),
    errno.EPERM: os.strerror(errno.EPERM),
    errno.EADDRINUSE: "the socket of that name belongs to a VM",
    errno.ELOOP: "the name is a symbolic link, which is not followed",
}

_log = get_logger("devices.virtio.vsock").limited()  # for what the guest can cause


class _Attempt:
    """One connection that the guest has asked for."""

    def __init__(self, request: Header, deadline: int) -> None:
        self.request = request
        self.deadline = deadline  # a tick
        self.is_queued = False
        self.is_over = False

    @property
    def port(self) -> int:
        """The port of the host."""
        return self.request.dst_port


class Attempts:
    """Ask the broker for one connection after the other, in the order of the guest's requests.

    While the listener of a port has a full backlog, all attempts for that port wait. Only the first
    of them is repeated, in each tick.
    """

    def __init__(
        self, broker: socket.socket, on_connected: OnConnected, on_refused: OnRefused
    ) -> None:
        """Each attempt that is not cancelled ends with one of both calls.

        ``on_connected`` takes over the connected socket. ``broker`` is the channel to the broker,
        which this object takes over.
        """
        self._broker = Broker(broker, self._on_answer)
        self._on_connected = on_connected
        self._on_refused = on_refused
        self._attempts: dict[tuple[int, int], _Attempt] = {}  # by ports, the oldest first
        self._queue: deque[_Attempt] = deque()  # to ask the broker for, in this order
        self._delayed: dict[int, deque[_Attempt]] = {}  # by port: the backlog was full
        self._asked: _Attempt | None = None
        self._asked_at = 0
        self._now = 0  # ticks
        self._ticking = False
        self._context: DeviceContext

    def __len__(self) -> int:
        return len(self._attempts)

    def attach(self, context: DeviceContext) -> None:
        """Take the device's context."""
        self._context = context
        self._broker.attach(context)

    def close(self) -> None:
        """Cancel everything and close the channel to the broker."""
        self.clear()
        self._broker.close()

    def clear(self) -> None:
        """Cancel everything."""
        for attempt in tuple(self._attempts.values()):
            self._drop(attempt)

    def begin(self, request: Header) -> None:
        """Try to connect as the guest asks; no other attempt may have the same ports."""
        attempt = _Attempt(request, self._now + ATTEMPT_TICKS)
        self._attempts[request.dst_port, request.src_port] = attempt
        self._enqueue(attempt)
        self._start_ticking()
        self._ask_next()

    def cancel(self, ports: tuple[int, int]) -> bool:
        """Forget the attempt with the host's and the guest's port; return whether there was one."""
        attempt = self._attempts.get(ports)
        if attempt is None:
            return False
        self._drop(attempt)
        return True

    def _enqueue(self, attempt: _Attempt) -> None:
        attempt.is_queued = True
        self._queue.append(attempt)

    def _drop(self, attempt: _Attempt) -> None:
        """Forget an attempt; the broker's answer to it may still come."""
        attempt.is_over = True
        port = attempt.port
        del self._attempts[port, attempt.request.src_port]
        if attempt.is_queued:
            self._queue.remove(attempt)
        delayed = self._delayed.get(port, ())
        if attempt in delayed:
            self._delayed[port].remove(attempt)
            if not delayed:
                del self._delayed[port]

    def _ask_next(self) -> None:
        while self._queue and not self._broker.is_asked:
            attempt = self._queue.popleft()
            attempt.is_queued = False
            delayed = self._delayed.get(attempt.port)
            if delayed and delayed[0] is not attempt:
                delayed.append(attempt)
                continue
            self._asked, self._asked_at = attempt, self._now
            self._broker.ask(attempt.port, SocketType(attempt.request.socket_type))

    def _on_answer(self, sock: socket.socket | None, error: int) -> None:
        attempt, self._asked = self._asked, None
        if attempt is None or attempt.is_over:  # the guest gave up, or the time ran out
            if sock is not None:
                sock.close()
        elif error == errno.EAGAIN:
            delayed = self._delayed.setdefault(attempt.port, deque())
            if attempt not in delayed:
                delayed.append(attempt)
        else:
            self._drop(attempt)
            self._retry(attempt.port)
            if sock is not None:
                self._on_connected(attempt.request, sock)
            else:
                self._refuse(attempt.request, error)
        self._ask_next()

    def _retry(self, port: int) -> None:
        """Repeat the first delayed attempt of ``port``; the others follow when it has ended."""
        delayed = self._delayed.get(port)
        if delayed and delayed[0] is not self._asked and not delayed[0].is_queued:
            self._enqueue(delayed[0])

    def _refuse(self, request: Header, error: int) -> None:
        if error in _WARNINGS:
            _log.warning("the guest cannot reach port %d: %s", request.dst_port, _WARNINGS[error])
        else:
            _log.debug("the guest cannot reach port %d: %s", request.dst_port, os.strerror(error))
        self._on_refused(request)

    def _start_ticking(self) -> None:
        if not self._ticking and (self._attempts or self._broker.is_asked):
            self._ticking = True
            self._context.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._now += 1
        if self._broker.is_asked and self._now - self._asked_at >= BROKER_TICKS:
            raise VmmError("the broker of its connections does not answer")
        for attempt in tuple(self._attempts.values()):
            if attempt.deadline > self._now:
                break
            _log.warning("port %d: %s", attempt.port, self._why_late(attempt))
            self._drop(attempt)
            self._on_refused(attempt.request)
        for port in tuple(self._delayed):
            self._retry(port)
        self._ask_next()
        self._start_ticking()

    def _why_late(self, attempt: _Attempt) -> str:
        if attempt.port in self._delayed:
            return "the backlog of its listener stays full"
        return "the broker did not come to it in time"
