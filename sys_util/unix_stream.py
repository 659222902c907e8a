# SPDX-License-Identifier: BSD-3-Clause
"""A stream socket of the UNIX family that somebody else may go on with at any moment.

The kernel keeps what a successor has to know: what was not read is still there (MSG_PEEK looks at
it), and an offset that every read counts down (SO_PEEK_OFF, socket(7)) outlives the process.
"""

from __future__ import annotations

import fcntl
import os
import socket
from struct import Struct

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# <asm-generic/socket.h>, <asm-generic/ioctls.h>
SO_PEEK_OFF: Final = 42
FIONREAD: Final = 0x541B
TIOCOUTQ: Final = 0x5411

_NO_OFFSET: Final = -1
_INT: Final = Struct("=i")
_PEEK: Final = socket.MSG_PEEK | socket.MSG_DONTWAIT


class UnixStream:
    """One end of such a socket; nothing here waits. Owns ``fd``."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        self._sock.setblocking(False)
        self.fd = fd
        self.send_buffer_bytes = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def close(self) -> None:
        """Close the descriptor."""
        self._sock.close()
        self.fd = -1

    def peek(self, buffer: memoryview) -> int:
        """Copy what comes next, and leave it; not while bytes are announced.

        Raises:
            BlockingIOError: there is nothing now.
        """
        return self._sock.recv_into(buffer, 0, _PEEK)

    def read(self, vectors: Sequence[memoryview]) -> int:
        """Read into ``vectors`` and return how much; 0 at the end.

        Raises:
            BlockingIOError: there is nothing now.
        """
        return os.readv(self.fd, vectors)

    def write(self, vectors: Sequence[bytes | memoryview]) -> int:
        """Write as much of ``vectors`` as there is room for.

        Raises:
            BlockingIOError: there is none now.
        """
        return os.writev(self.fd, vectors)

    def readable_bytes(self) -> int:
        """Return how much can be read now."""
        return self._count(FIONREAD)

    def queued_bytes(self) -> int:
        """Return how much of the send buffer is taken, with the kernel's overhead."""
        return self._count(TIOCOUTQ)

    def announce(self, length_bytes: int) -> None:
        """Have the kernel count down from ``length_bytes`` what is read from now on; 0 ends it."""
        offset = length_bytes or _NO_OFFSET
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)

    def announced_bytes(self) -> int:
        """Return what is left of that, whoever announced it."""
        return max(0, self._sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF))

    def _count(self, request: int) -> int:
        count: int = _INT.unpack(fcntl.ioctl(self.fd, request, bytes(_INT.size)))[0]
        return count
