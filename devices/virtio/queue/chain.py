# SPDX-License-Identifier: BSD-3-Clause
"""A descriptor chain as a device sees it: one stream of bytes to read, one to write.

How the driver divides a request into descriptors means nothing (virtio 1.3 §2.7.4.1), so a device
never sees descriptors. The bytes are guest memory itself: the guest may change them at any time, so
read each of them once.
"""

from __future__ import annotations

from sys_util.errors import GuestError
from sys_util.typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from struct import Struct


class ChainError(GuestError):
    """The chain that starts at ``head`` is malformed. It goes back to the driver with 0 bytes."""

    def __init__(self, head: int, reason: str) -> None:
        super().__init__(f"chain {head}: {reason}")
        self.head = head
        self.reason = reason


class _Stream:
    """Guest buffers in the order of their descriptors, from the first byte not yet consumed."""

    __slots__ = ("_head", "_segments", "remaining")

    def __init__(self, head: int, segments: list[memoryview], remaining: int) -> None:
        """Take over the list ``segments``: non-empty views of ``remaining`` bytes in all."""
        self._head = head
        self._segments = segments
        self.remaining = remaining

    def iovecs(self, length: int) -> list[memoryview]:
        """Return guest memory for the next ``length`` bytes, without consuming them.

        For ``os.preadv`` and ``os.pwritev``; the caller must not change the list.

        Raises:
            ChainError: fewer bytes are left.
        """
        if length == self.remaining:
            return self._segments
        if length > self.remaining:
            self._raise_short(length)
        vectors: list[memoryview] = []
        for segment in self._segments:
            if not length:
                break
            vector = segment if len(segment) <= length else segment[:length]
            vectors.append(vector)
            length -= len(vector)
        return vectors

    def _consume(self, length: int) -> None:
        """Drop the first ``length`` bytes, of which there are enough."""
        self.remaining -= length
        segments = self._segments
        done = 0
        for segment in segments:
            if length < len(segment):
                break
            length -= len(segment)
            done += 1
        if done:
            del segments[:done]
        if length:
            segments[0] = segments[0][length:]

    def _raise_short(self, length: int) -> NoReturn:
        raise ChainError(self._head, f"{length} bytes wanted, {self.remaining} are there")


class Reader(_Stream):
    """The device-readable bytes of a chain."""

    __slots__ = ()

    def read(self, length: int) -> bytes:
        """Return a copy of the next ``length`` bytes and consume them.

        Raises:
            ChainError: fewer bytes are left.
        """
        data = b"".join(self.iovecs(length))
        self._consume(length)
        return data

    def unpack(self, layout: Struct) -> tuple[int, ...]:
        """Read one structure of integers.

        Raises:
            ChainError: fewer bytes are left.
        """
        segments = self._segments
        size = layout.size
        if segments and len(segments[0]) == size:  # as most drivers lay out a header
            self.remaining -= size
            return layout.unpack(segments.pop(0))
        return layout.unpack(self.read(size))

    def skip(self, length: int) -> None:
        """Consume ``length`` bytes, after using ``iovecs``.

        Raises:
            ChainError: fewer bytes are left.
        """
        if length > self.remaining:
            self._raise_short(length)
        self._consume(length)


class Writer(_Stream):
    """The device-writable bytes of a chain, or a part of them."""

    __slots__ = ("_stored", "_tail")

    def __init__(self, head: int, segments: list[memoryview], remaining: int) -> None:
        """Take over the list ``segments``: non-empty views of ``remaining`` bytes in all."""
        self._head = head
        self._segments = segments
        self.remaining = remaining
        self._stored = 0
        self._tail: Writer | None = None

    @property
    def written(self) -> int:
        """How many bytes from the start on were stored without a gap (virtio 1.3 §2.7.8.2).

        Bytes written to a part that was split off count once everything before it was written.
        """
        if self._tail is None or self.remaining:
            return self._stored
        return self._stored + self._tail.written

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` in the next bytes.

        Raises:
            ChainError: it does not fit; nothing is stored.
        """
        length = len(data)
        segments = self.iovecs(length)
        self._stored += length
        if length == self.remaining and len(segments) == 1:  # a status, most of the time
            segments[0][:] = data
            self._segments = []
            self.remaining = 0
            return
        source = memoryview(data)
        at = 0
        for segment in segments:
            end = at + len(segment)
            segment[:] = source[at:end]
            at = end
        self._consume(length)

    def commit(self, length: int) -> None:
        """Count ``length`` bytes that were stored through ``iovecs``.

        Raises:
            ChainError: fewer bytes are left.
        """
        if length == self.remaining:
            self._segments = []
            self.remaining = 0
        elif length < self.remaining:
            self._consume(length)
        else:
            self._raise_short(length)
        self._stored += length

    def split_at(self, offset: int) -> Writer:
        """Keep the next ``offset`` bytes and return a writer for what comes after them.

        Raises:
            ChainError: fewer bytes are left.
        """
        if not 0 <= offset <= self.remaining or self._tail is not None:
            self._raise_short(offset)
        length = self.remaining - offset
        self.remaining = offset
        segments = self._segments
        if length and len(segments[-1]) == length:  # a buffer of its own, most of the time
            after = [segments.pop()]
        else:
            after = _take_end(segments, length)
        self._tail = tail = Writer(self._head, after, length)
        return tail


class DescriptorChain:
    """One request of the driver. ``head`` names it in the used ring."""

    __slots__ = ("head", "reader", "writer")

    def __init__(self, head: int, reader: Reader, writer: Writer) -> None:
        self.head = head
        self.reader = reader
        self.writer = writer


def _take_end(segments: list[memoryview], length: int) -> list[memoryview]:
    """Remove the last ``length`` bytes from ``segments`` and return them."""
    taken: list[memoryview] = []
    while length:
        last = segments.pop()
        size = len(last)
        if size > length:
            segments.append(last[: size - length])
            last = last[size - length :]
            size = length
        taken.append(last)
        length -= size
    taken.reverse()
    return taken
