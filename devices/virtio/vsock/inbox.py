# SPDX-License-Identifier: BSD-3-Clause
"""The way from a socket of the host to the guest: read straight into the guest's buffers."""

from __future__ import annotations

from devices.virtio.vsock.packet import SEQ_EOM, SocketType
from sys_util.socket import MSG_DONTWAIT, MSG_TRUNC
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.queue.chain import Writer
    from sys_util import socket

_NO_DATA: Final = memoryview(b"")


class MessageTooLongError(ValueError):
    """The host's process sent a message that the guest can never take."""


class Inbox:
    """Data of the host's process. At most one message is held, until the guest has all of it.

    ``readable``: the socket may have data. ``at_end``: nothing will be read any more. ``failed``:
    the socket is broken, for writing too.
    """

    __slots__ = ("_is_stream", "_pending", "_scratch", "_sock", "at_end", "failed", "readable")

    def __init__(self, sock: socket.socket, socket_type: SocketType, scratch: memoryview) -> None:
        """The caller still owns ``sock``. ``scratch``, used during calls, bounds a message."""
        self._sock = sock
        self._is_stream = socket_type == SocketType.STREAM
        self._scratch = scratch
        self._pending = _NO_DATA
        self.readable = False
        self.at_end = False
        self.failed = False

    @property
    def has_data(self) -> bool:
        """Whether ``read_into`` probably has data."""
        return self.readable or bool(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether data was read that the guest has not got yet."""
        return bool(self._pending)

    def put_first(self, data: bytes) -> None:
        """Deliver ``data`` before the socket's own data."""
        self._pending = memoryview(data)

    def discard(self) -> None:
        """Stop reading, and drop what was read."""
        self.at_end = True
        self.readable = False
        self._pending = _NO_DATA

    def read_into(self, data: Writer, limit: int, longest: int) -> tuple[int, int]:
        """Store up to ``limit`` bytes; return how many, and the flags of their packet.

        0 bytes mean that there are none now, or that the end has come (``at_end``).

        Args:
            data: has room for ``limit`` bytes.
            limit: more than 0.
            longest: the longest message that the guest can ever take.

        Raises:
            MessageTooLongError: a message is longer than that, or than ``scratch``.
        """
        if not self._pending:
            if self._is_stream:
                return self._receive([*data.iovecs(limit)], limit, data), 0
            self._read_message(longest)
        part, self._pending = self._pending[:limit], self._pending[limit:]
        data.write(part)
        whole = not self._is_stream and not self._pending
        return len(part), SEQ_EOM if whole else 0

    def _receive(self, into: list[memoryview], limit: int, data: Writer) -> int:
        length, _ = self._call(into)
        data.commit(length)
        if length < limit:
            self.readable = False  # if this was the end, epoll reports it again
        return length

    def _read_message(self, longest: int) -> None:
        length, flags = self._call([self._scratch])
        if flags & MSG_TRUNC or length > longest:
            limit = min(longest, len(self._scratch))
            raise MessageTooLongError(f"a message of the host is above {limit} bytes")
        self._pending = memoryview(bytes(self._scratch[:length]))

    def _call(self, into: list[memoryview]) -> tuple[int, int]:
        try:
            length, _, flags, _ = self._sock.recvmsg_into(into, 0, MSG_DONTWAIT)
        except BlockingIOError:
            self.readable = False
            return 0, 0
        except OSError:
            self.failed = True
            length = flags = 0
        if not length:
            self.at_end = True
            self.readable = False
        return length, flags
