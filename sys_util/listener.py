# SPDX-License-Identifier: BSD-3-Clause
"""Accept connections on an event loop, and wait a while when there are no descriptors for them."""

from __future__ import annotations

import errno

from sys_util.event_loop import EPOLLIN
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sys_util import socket

# How long new clients have to wait when we have no descriptors for them.
ACCEPT_PAUSE_SECONDS: Final = 1.0

_TOO_FEW: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Loop(Protocol):
    """The part of the event loop that a server needs."""

    def add(self, fd: int, callback: Callable[[int], None], *, events: int = EPOLLIN) -> None:
        """Watch ``fd``."""

    def modify(self, fd: int, events: int) -> None:
        """Watch for other events."""

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object:
        """Call once, later."""


class Listener:
    """Gives each new connection to ``on_client``, which owns it and for which it never blocks.

    Owns no socket: the caller closes ``sock`` after ``close``.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, on_client: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_client = on_client
        self._closed = False
        loop.add(sock.fileno(), self._on_connection)

    def close(self) -> None:
        """Accept no more."""
        self._closed = True
        self._loop.remove(self._sock.fileno())

    def _on_connection(self, _events: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            if error.errno in _TOO_FEW:
                # The connection stays in the backlog. If we went on watching, it would wake us
                # again at once.
                self._loop.modify(self._sock.fileno(), 0)
                self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._resume)
            return
        sock.setblocking(False)
        self._on_client(sock)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.modify(self._sock.fileno(), EPOLLIN)
