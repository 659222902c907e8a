# SPDX-License-Identifier: BSD-3-Clause
"""What has arrived at a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def arrived(sock: socket.socket) -> list[bytes]:
    """Return everything that is there now, a datagram or a piece of the stream at a time."""
    found = []
    try:
        while True:
            found.append(sock.recv(1 << 17))
    except BlockingIOError:
        return found
