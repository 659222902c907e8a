# SPDX-License-Identifier: BSD-3-Clause
"""Serve the clients of the REST API on the event loop, without ever blocking on one of them.

Each connection has one request under way; what comes behind it waits in the socket. A client that
does not read its answer waits alone. Connections stay open as long as their clients want.
"""

from __future__ import annotations

import array

from crosvm_py.api import http
from crosvm_py.socket_path import peer_credentials
from sys_util import socket
from sys_util.event_loop import EPOLLIN, EPOLLOUT
from sys_util.listener import Listener
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sys_util.listener import Loop

    # Takes a request with its descriptors, and is given what sends the bytes of the answer.
    Serve = Callable[[http.HttpRequest, Callable[[bytes], None]], None]

MAX_CONNECTIONS: Final = 10

_PIECE_BYTES: Final = 64 * 1024
_FD_BYTES: Final = array.array("i").itemsize
_RIGHTS_BYTES: Final = socket.CMSG_SPACE(http.MAX_FDS * _FD_BYTES)
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

_log = get_logger("crosvm.control")


class _Client:
    """One connection. ``busy`` while its request is carried out, ``in_turn`` in ``_go_on``."""

    __slots__ = ("busy", "connection", "fd", "in_turn", "out", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.in_turn = False
        self.connection = http.HttpConnection()
        self.out = b""
        self.busy = False


class ApiServer:
    """The clients of one VM. Owns their sockets, not the listening one.

    ``bad_request`` makes the bytes of the answer to what is no request, from the reason. Only
    clients of the users ``uids`` are served.
    """

    def __init__(
        self,
        loop: Loop,
        listening: socket.socket,
        serve: Serve,
        bad_request: Callable[[str], bytes],
        uids: Iterable[int],
    ) -> None:
        self._loop = loop
        self._serve = serve
        self._bad_request = bad_request
        self._uids = frozenset(uids)
        self._clients: dict[int, _Client] = {}
        self._listener = Listener(loop, listening, self._on_client)

    @property
    def client_count(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def close(self) -> None:
        """Disconnect all clients and accept no more."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()

    def _on_client(self, sock: socket.socket) -> None:
        uid = peer_credentials(sock)[1]
        if uid not in self._uids:
            _log.warning("client of uid %d refused by the API socket", uid)
            sock.close()
        elif len(self._clients) >= MAX_CONNECTIONS:
            _refuse(sock)
        else:
            client = self._clients[sock.fileno()] = _Client(sock)
            self._loop.add(sock.fileno(), lambda events: self._on_ready(client, events))

    def _on_ready(self, client: _Client, events: int) -> None:
        if client.out:
            self._go_on(client)
            return
        if client.busy:  # we wait for no data now, so the connection was closed
            self._drop(client)
            return
        try:
            data, ancillary, _flags, _ = client.sock.recvmsg(
                _PIECE_BYTES, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.connection.feed(data, _received_fds(ancillary))
        if data:
            self._go_on(client)
        else:
            self._drop(client)

    def _go_on(self, client: _Client) -> None:
        """Send what is to be sent and answer what has come, until something must be waited for."""
        client.in_turn = True
        while self._flush(client) and not client.busy:
            event = client.connection.next_event()
            if event is None:
                break
            self._take(client, event)
        client.in_turn = False
        if self._is_connected(client):
            self._loop.modify(
                client.sock.fileno(), EPOLLOUT if client.out else 0 if client.busy else EPOLLIN
            )

    def _take(self, client: _Client, event: http.Event) -> None:
        if isinstance(event, http.HttpRequest):
            client.busy = True
            self._serve(event, lambda answer: self._reply(client, answer))
        elif isinstance(event, http.BadRequest):
            client.out = self._bad_request(event.reason)
        else:
            client.out = http.CONTINUE

    def _reply(self, client: _Client, answer: bytes) -> None:
        if not self._is_connected(client):
            return  # the client has disconnected before the answer
        client.busy = False
        client.out = answer
        if not client.in_turn:
            self._go_on(client)

    def _flush(self, client: _Client) -> bool:
        """Send what the socket takes; return whether nothing is left and the client is there."""
        if not client.out:
            return self._is_connected(client)
        try:
            sent = client.sock.send(client.out, _SEND_FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            self._drop(client)
            return False
        client.out = client.out[sent:]
        return not client.out

    def _is_connected(self, client: _Client) -> bool:
        return self._clients.get(client.fd) is client

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.fd, None) is not None:
            self._loop.remove(client.fd)
            client.connection.close()
            client.sock.close()


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return fds.tolist()


def _refuse(sock: socket.socket) -> None:
    with sock:
        try:
            sock.send(http.TOO_MANY_CONNECTIONS, _SEND_FLAGS)
        except OSError:
            return
