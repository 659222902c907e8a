# SPDX-License-Identifier: BSD-3-Clause
"""What has arrived at a socket."""

from __future__ import annotations

import contextlib
import os
import socket


def arrived(sock: socket.socket) -> list[bytes]:
    """Return everything that is there now, a datagram or a piece of the stream at a time."""
    found = []
    try:
        while True:
            found.append(sock.recv(1 << 17))
    except BlockingIOError:
        return found


def datagram_sockets(pid: int) -> int:
    """Return how many descriptors of a process are UNIX datagram sockets (proc(5), net/unix)."""
    with open(f"/proc/{pid}/net/unix", encoding="ascii", errors="replace") as table:
        rows = [line.split() for line in table][1:]
    inodes = {f"socket:[{row[6]}]" for row in rows if int(row[4], 16) == socket.SOCK_DGRAM}
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the directory
            found += os.readlink(f"/proc/{pid}/fd/{fd}") in inodes
    return found
