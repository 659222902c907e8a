# SPDX-License-Identifier: BSD-3-Clause
"""Lines that the relay sends as datagrams: a pipe that the vmm writes to, and a socket.

Whoever has a datagram socket can send to any address, and pass any descriptors, and a seccomp
filter can see neither. So the vmm has no such socket when the guest runs; the relay has it instead.
"""

from __future__ import annotations

import os

from sys_util.errors import raise_host_error
from sys_util.typing import NamedTuple


class Outlet(NamedTuple):
    """A pipe and a connected socket of the relay; whoever has the outlet owns both descriptors.

    The relay sends each line from ``pipe_fd`` to ``socket_fd`` with ``prefix`` before it, in pieces
    of at most ``max_line_bytes``. With a prefix, empty lines are left out.
    """

    pipe_fd: int
    socket_fd: int
    max_line_bytes: int
    prefix: bytes = b""

    def close(self) -> None:
        """Close both descriptors, in a process that is not the relay."""
        os.close(self.pipe_fd)
        os.close(self.socket_fd)


def open_outlet(socket_fd: int, max_line_bytes: int, prefix: bytes = b"") -> tuple[int, Outlet]:
    """Return a non-blocking descriptor to write lines to, and the outlet, which owns the socket.

    Raises:
        HostError: the host makes no pipe.
    """
    try:
        pipe_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise_host_error("make", "a pipe for lines", error)
    return write_fd, Outlet(pipe_fd, socket_fd, max_line_bytes, prefix)
