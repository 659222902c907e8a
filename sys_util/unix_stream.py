# SPDX-License-Identifier: BSD-3-Clause
"""A UNIX stream socket with which another process may have to continue at any moment.

The kernel keeps all that the next process has to know. MSG_PEEK looks at data without taking it, so
the data is still there if this process is killed. SO_PEEK_OFF (socket(7)) is an offset that the
kernel reduces with every read: we use it to count what is left of a frame.
"""

from __future__ import annotations

import fcntl
import os
from struct import Struct

from sys_util import socket
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
    """One end of such a socket. No call waits. Owns ``fd``."""

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
        """Copy the next bytes without taking them. Do not call it while bytes are announced.

        Raises:
            BlockingIOError: there is no data now.
        """
        return self._sock.recv_into(buffer, 0, _PEEK)

    def read(self, vectors: Sequence[memoryview]) -> int:
        """Read into ``vectors`` and return how many bytes; 0 at the end of the stream.

        Raises:
            BlockingIOError: there is no data now.
        """
        return os.readv(self.fd, vectors)

    def write(self, vectors: Sequence[bytes | memoryview]) -> int:
        """Write as much of ``vectors`` as fits, and return how many bytes.

        Raises:
            BlockingIOError: nothing fits now.
        """
        return os.writev(self.fd, vectors)

    def readable_bytes(self) -> int:
        """Return how many bytes can be read now."""
        return self._count(FIONREAD)

    def queued_bytes(self) -> int:
        """Return how many bytes of the send buffer are used, with the kernel's overhead."""
        return self._count(TIOCOUTQ)

    def announce(self, length_bytes: int) -> None:
        """Have the kernel subtract every read from ``length_bytes``; 0 ends the counting."""
        offset = length_bytes or _NO_OFFSET
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)

    def announced_bytes(self) -> int:
        """Return what is left of the announced bytes, also if another process announced them."""
        return max(0, self._sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF))

    def _count(self, request: int) -> int:
        count: int = _INT.unpack(fcntl.ioctl(self.fd, request, bytes(_INT.size)))[0]
        return count
