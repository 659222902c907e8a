# SPDX-License-Identifier: BSD-3-Clause
"""Serve control clients on the vmm's event loop, without ever blocking on one of them.

A client that sends garbage gets an error as its answer and is disconnected. A client that does not
read its answers is disconnected. If there are ``MAX_CLIENTS``, a new client replaces the one that
has been silent the longest, if that is at least ``IDLE_SECONDS``; otherwise it is refused.
"""

from __future__ import annotations

import os
import time

from crosvm_py.requests.catalogue import REQUESTS
from crosvm_py.requests.life import Stop
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, MAX_REQUEST_BYTES, Failed
from crosvm_py.socket_path import peer_credentials
from sys_util import socket
from sys_util.errors import ProtocolError, VmmError, describe
from sys_util.event_loop import EPOLLIN
from sys_util.listener import Listener
from sys_util.log import get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final, cast
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.requests.pending import Handler
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.socket_path import BoundSocket
    from sys_util.listener import Loop

MAX_CLIENTS: Final = 32
# A client that has been silent for so long may be replaced by a new one.
IDLE_SECONDS: Final = 5.0

_log = get_logger("crosvm.control")


class _Client:
    """One connection."""

    __slots__ = ("busy", "last_active", "sock", "waits_for_end")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.last_active = now
        self.busy = False
        self.waits_for_end = False


class ControlServer:
    """The clients of one VM. Owns their sockets and, from ``__init__`` on, the listening one."""

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
        self._listener = Listener(loop, bound.sock, self._on_client)

    @property
    def client_count(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def close(self) -> None:
        """Disconnect all clients and stop listening; the owner of the socket file removes it."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()
        self._bound.close()

    def _on_client(self, sock: socket.socket) -> None:
        uid = peer_credentials(sock)[1]
        if uid not in self._allowed_uids:
            _log.warning("control client of uid %d refused", uid)
            _refuse(sock, f"uid {uid} may not control this VM")
        elif len(self._clients) >= MAX_CLIENTS and not self._make_room():
            _refuse(sock, f"{MAX_CLIENTS} clients are connected already")
        else:
            self._clients[sock.fileno()] = client = _Client(sock, self._clock())
            self._loop.add(sock.fileno(), lambda _events: self._on_ready(client))

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
        if client.busy:  # we wait for no data now, so the connection was closed
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
            return  # the client has disconnected before the answer
        client.busy = False
        client.last_active = self._clock()
        self._loop.modify(client.sock.fileno(), EPOLLIN)
        self._send(client, response)

    def _send(self, client: _Client, response: Response) -> None:
        try:
            client.sock.send(encode(response), socket.MSG_NOSIGNAL)
        except OSError:  # the client has ended, or does not read
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.sock.fileno(), None) is not None:
            self._loop.remove(client.sock.fileno())
            client.sock.close()


def _decode(payload: bytes) -> Request:
    if len(payload) > MAX_REQUEST_BYTES:
        raise ProtocolError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
    # The codec was made from the request classes, so it returns nothing else.
    return cast("Request", REQUESTS.decode(payload))


def _refuse(sock: socket.socket, reason: str) -> None:
    with sock:
        try:
            sock.send(encode(Failed(reason)), socket.MSG_NOSIGNAL)
        except OSError:
            return
