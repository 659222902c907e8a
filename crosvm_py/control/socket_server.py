# SPDX-License-Identifier: BSD-3-Clause
"""Serve control clients on the vmm's event loop, without ever waiting for one of them.

A client that sends garbage gets an answer that says so and loses its connection; one that does not
read its answers only loses the connection. Past the bound on clients the one that has been silent
for longest makes room, if it has been silent for a while, and else the new one is turned away.
"""

from __future__ import annotations

import errno
import os
import socket
import time

from crosvm_py.requests.catalogue import REQUESTS
from crosvm_py.requests.life import Stop
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, MAX_REQUEST_BYTES, Failed
from crosvm_py.socket_path import peer_credentials
from sys_util.errors import ProtocolError, VmmError, describe
from sys_util.event_loop import EPOLLIN
from sys_util.log import get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final, Protocol, cast
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.requests.pending import Handler
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.socket_path import BoundSocket

MAX_CLIENTS: Final = 32
# How long a client may be silent before a new one may take its place.
IDLE_SECONDS: Final = 5.0
# How long to leave new clients waiting when there are no descriptors for them.
ACCEPT_PAUSE_SECONDS: Final = 1.0

_log = get_logger("crosvm.control")


class Loop(Protocol):
    """What the server needs of the event loop."""

    def add(self, fd: int, callback: Callable[[int], None], *, events: int = EPOLLIN) -> None:
        """Watch ``fd``."""

    def modify(self, fd: int, events: int) -> None:
        """Watch for other events."""

    def remove(self, fd: int) -> None:
        """Watch no more."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object:
        """Call once, later."""


class _Client:
    """One connection."""

    __slots__ = ("busy", "last_active", "sock", "waits_for_end")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.last_active = now
        self.busy = False
        self.waits_for_end = False


class ControlServer:
    """The clients of one VM. Owns their sockets and, once made, the listening one."""

    def __init__(
        self,
        loop: Loop,
        bound: BoundSocket,
        handler: Handler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._handler = handler
        self._clock = clock
        self._clients: dict[int, _Client] = {}
        self._allowed_uids = frozenset((0, os.geteuid()))
        self._closed = False
        loop.add(bound.sock.fileno(), self._on_connection)

    @property
    def client_count(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def close(self) -> None:
        """Drop all clients and stop listening; the file stays for its owner to remove."""
        self._closed = True
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.remove(self._bound.sock.fileno())
        self._bound.close()

    def _on_connection(self, _events: int) -> None:
        try:
            sock, _ = self._bound.sock.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # The connection stays in the backlog and would wake us again at once.
                self._loop.modify(self._bound.sock.fileno(), 0)
                self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._resume_accepting)
            return
        sock.setblocking(False)
        uid = peer_credentials(sock)[1]
        if uid not in self._allowed_uids:
            _log.warning("control client of uid %d refused", uid)
            _refuse(sock, f"uid {uid} may not control this VM")
        elif len(self._clients) >= MAX_CLIENTS and not self._make_room():
            _refuse(sock, f"{MAX_CLIENTS} clients are connected already")
        else:
            self._clients[sock.fileno()] = client = _Client(sock, self._clock())
            self._loop.add(sock.fileno(), lambda _events: self._on_ready(client))

    def _resume_accepting(self) -> None:
        if not self._closed:
            self._loop.modify(self._bound.sock.fileno(), EPOLLIN)

    def _make_room(self) -> bool:
        idle = [
            client
            for client in self._clients.values()
            if not client.busy and not client.waits_for_end
        ]
        oldest = min(idle, key=lambda client: client.last_active, default=None)
        if oldest is None or self._clock() - oldest.last_active < IDLE_SECONDS:
            return False
        self._drop(oldest)
        return True

    def _on_ready(self, client: _Client) -> None:
        if client.busy:  # no events are asked for, so this is the end of the connection
            self._drop(client)
            return
        try:
            payload = client.sock.recv(MAX_REQUEST_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not payload:
            self._drop(client)
            return
        client.last_active = self._clock()
        try:
            request = _decode(payload)
        except ProtocolError as error:
            self._send(client, Failed(f"{error}"[:MAX_REASON_CHARS]))
            self._drop(client)
            return
        self._serve(client, request)

    def _serve(self, client: _Client, request: Request) -> None:
        client.waits_for_end |= isinstance(request, Stop)
        try:
            answer = judged("the request", self._handler, request)
        except VmmError as error:
            answer = Failed(describe(error)[:MAX_REASON_CHARS])
        if not isinstance(answer, Pending):
            self._send(client, answer)
            return
        client.busy = True
        self._loop.modify(client.sock.fileno(), 0)
        answer.deliver_to(lambda response: self._finish(client, response))

    def _finish(self, client: _Client, response: Response) -> None:
        if self._clients.get(client.sock.fileno()) is not client:
            return  # it did not wait for the answer
        client.busy = False
        client.last_active = self._clock()
        self._loop.modify(client.sock.fileno(), EPOLLIN)
        self._send(client, response)

    def _send(self, client: _Client, response: Response) -> None:
        try:
            client.sock.send(encode(response), socket.MSG_NOSIGNAL)
        except OSError:  # gone, or it does not read
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.sock.fileno(), None) is not None:
            self._loop.remove(client.sock.fileno())
            client.sock.close()


def _decode(payload: bytes) -> Request:
    if len(payload) > MAX_REQUEST_BYTES:
        raise ProtocolError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
    # The codec was made from the classes of Request and gives back nothing else.
    return cast("Request", REQUESTS.decode(payload))


def _refuse(sock: socket.socket, reason: str) -> None:
    with sock:
        try:
            sock.send(encode(Failed(reason)), socket.MSG_NOSIGNAL)
        except OSError:
            return
