# SPDX-License-Identifier: BSD-3-Clause
"""The way from a socket of the host to the guest: read straight into the guest's buffers."""

from __future__ import annotations

from socket import MSG_DONTWAIT, MSG_TRUNC

from devices.virtio.vsock.packet import SEQ_EOM, SocketType
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

    from devices.virtio.queue.chain import Writer

_NO_DATA: Final = memoryview(b"")


class MessageTooLongError(ValueError):
    """The host's process sent a message that the guest can never take."""


class Inbox:
    """What the host's process sent. Holds a message until the guest has all of it, and no more.

    ``readable``: the socket may have something. ``at_end``: nothing will be read any more.
    ``failed``: the socket broke, and takes nothing either.
    """

    __slots__ = ("_is_stream", "_pending", "_scratch", "_sock", "at_end", "failed", "readable")

    def __init__(self, sock: socket.socket, socket_type: SocketType, scratch: memoryview) -> None:
        """``sock`` stays the caller's; ``scratch`` is used during calls and bounds a message."""
        self._sock = sock
        self._is_stream = socket_type == SocketType.STREAM
        self._scratch = scratch
        self._pending = _NO_DATA
        self.readable = False
        self.at_end = False
        self.failed = False

    @property
    def has_data(self) -> bool:
        """Whether ``read_into`` probably has something."""
        return self.readable or bool(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether something was read that the guest has not got yet."""
        return bool(self._pending)

    def put_first(self, data: bytes) -> None:
        """Let ``data`` come before what the socket has."""
        self._pending = memoryview(data)

    def discard(self) -> None:
        """Read nothing any more, and forget what was read."""
        self.at_end = True
        self.readable = False
        self._pending = _NO_DATA

    def read_into(self, data: Writer, limit: int, longest: int) -> tuple[int, int]:
        """Store up to ``limit`` bytes; return how many, and the flags of their packet.

        Nothing means nothing for now, or the end.

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
            self.readable = False  # or its end has come, which epoll tells again
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
