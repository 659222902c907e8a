# SPDX-License-Identifier: BSD-3-Clause
"""Lines that leave as datagrams: a pipe that the vmm writes to, and the socket behind the relay.

A datagram socket sends to any address that its owner names, with any descriptors beside it, and no
filter sees either. So the vmm has none once the guest runs.
"""

from __future__ import annotations

import os

from sys_util.errors import raise_host_error
from sys_util.typing import NamedTuple


class Outlet(NamedTuple):
    """The relay's ends of one way out; whoever has the outlet owns both descriptors.

    Each line that comes out of ``pipe_fd`` goes into the connected ``socket_fd`` behind ``prefix``,
    in pieces of at most ``max_line_bytes``. With a prefix, empty lines are left out.
    """

    pipe_fd: int
    socket_fd: int
    max_line_bytes: int
    prefix: bytes = b""

    def close(self) -> None:
        """Close both descriptors, where there is no relay to take them."""
        os.close(self.pipe_fd)
        os.close(self.socket_fd)


def open_outlet(socket_fd: int, max_line_bytes: int, prefix: bytes = b"") -> tuple[int, Outlet]:
    """Return a non-blocking descriptor to write lines to, and the outlet, which owns the socket.

    Raises:
        HostError: the host has no pipe for us.
    """
    try:
        pipe_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise_host_error("make", "a pipe for lines", error)
    return write_fd, Outlet(pipe_fd, socket_fd, max_line_bytes, prefix)
