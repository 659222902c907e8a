# SPDX-License-Identifier: BSD-3-Clause
"""Data of the guest that the host's process has not taken yet: a bounded buffer per connection.

The guest may send no more than its credit, which bounds the bytes. Each waiting message also costs
a prefix of four bytes, so the number of messages that wait in all connections is bounded too:
otherwise a guest could take much more memory than its credit by sending very small ones.
"""

from __future__ import annotations

from sys_util.socket import MSG_DONTWAIT, MSG_NOSIGNAL
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.queue.chain import Reader
    from sys_util import socket

_FLAGS: Final = MSG_DONTWAIT | MSG_NOSIGNAL
_PREFIX_BYTES: Final = 4

# Over all connections of the guest.
MAX_WAITING_MESSAGES: Final = 1 << 20


class Outbox(Protocol):
    """The way from the guest to a socket of the host."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for the host's process."""
        ...

    def put(self, reader: Reader, length: int, *, end_of_message: bool) -> int:
        """Take ``length`` bytes; return how many bytes this delivered to the host.

        Raises:
            OSError: the socket is broken.
        """
        ...

    def flush(self) -> int:
        """Deliver what the socket takes now; return how many bytes.

        Raises:
            OSError: the socket is broken.
        """
        ...

    def discard(self) -> None:
        """Drop what waits."""
        ...


class StreamOutbox:
    """Bytes without boundaries. What the socket takes at once is never copied."""

    def __init__(self, sock: socket.socket) -> None:
        """The caller still owns ``sock``."""
        self._sock = sock
        self._bytes = bytearray()

    @property
    def is_empty(self) -> bool:
        return not self._bytes

    def put(self, reader: Reader, length: int, *, end_of_message: bool) -> int:
        sent = 0
        if not self._bytes:
            sent = self._send_all(reader.iovecs(length))
            reader.skip(sent)
        if sent < length:
            self._bytes += reader.read(length - sent)
        return sent

    def _send_all(self, vectors: Sequence[memoryview]) -> int:
        """Send as much as the socket takes, one by one: the filter does not allow sendmsg(2)."""
        sent = 0
        try:
            for vector in vectors:
                done = self._sock.send(vector, _FLAGS)
                sent += done
                if done < len(vector):
                    break
        except BlockingIOError:
            pass
        return sent

    def flush(self) -> int:
        delivered = 0
        while self._bytes:
            try:
                sent = self._sock.send(self._bytes, _FLAGS)
            except BlockingIOError:
                break
            del self._bytes[:sent]
            delivered += sent
        return delivered

    def discard(self) -> None:
        self._bytes.clear()


class MessagePool:
    """The number of messages that wait, over all connections."""

    def __init__(self) -> None:
        self.waiting = 0


class MessageOutbox:
    """Whole messages: each is sent by one call, once its last part has come.

    Each message is stored as its length and its bytes; the last one may still be incomplete.
    """

    def __init__(self, sock: socket.socket, pool: MessagePool) -> None:
        """The caller still owns ``sock``."""
        self._sock = sock
        self._pool = pool
        self._bytes = bytearray()
        self._complete = 0  # messages that can be sent
        self._start = -1  # where the prefix of the incomplete message is, -1 without one

    @property
    def is_empty(self) -> bool:
        return not self._complete

    def put(self, reader: Reader, length: int, *, end_of_message: bool) -> int:
        if self._start < 0:
            self._start = len(self._bytes)
            self._bytes += bytes(_PREFIX_BYTES)
        self._bytes += reader.read(length)
        if not end_of_message:
            return 0
        size = len(self._bytes) - self._start - _PREFIX_BYTES
        self._bytes[self._start : self._start + _PREFIX_BYTES] = size.to_bytes(_PREFIX_BYTES, "big")
        if not size:
            # An empty message would read as the end of the connection at the other side.
            del self._bytes[self._start :]
            self._start = -1
            return 0
        self._start = -1
        self._complete += 1
        self._pool.waiting += 1
        if self._pool.waiting > MAX_WAITING_MESSAGES:
            raise BufferError(f"{self._pool.waiting} messages wait for the host")
        return self.flush()

    def flush(self) -> int:
        delivered = 0
        while self._complete:
            size = int.from_bytes(self._bytes[:_PREFIX_BYTES], "big")
            end = _PREFIX_BYTES + size
            try:
                with memoryview(self._bytes) as view:
                    self._sock.send(view[_PREFIX_BYTES:end], _FLAGS)
            except BlockingIOError:
                break
            del self._bytes[:end]
            if self._start >= 0:
                self._start -= end
            self._complete -= 1
            self._pool.waiting -= 1
            delivered += size
        return delivered

    def discard(self) -> None:
        self._bytes.clear()
        self._start = -1
        self._pool.waiting -= self._complete
        self._complete = 0
