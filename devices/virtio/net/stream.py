# SPDX-License-Identifier: BSD-3-Clause
"""The stream socket to user-mode networking: each frame after its length, and no headers.

A process of the device may be killed at any moment, and the next one goes on with the socket. So
nothing is taken out of it but whole frames, and nothing is put in but whole frames:

- Frames are looked at first (MSG_PEEK), and read once the driver has them: they may come twice, but
  are not lost, since some versions of passt never repeat an acknowledgment. A long frame carries
  data, which passt repeats: it is read into guest memory at once, when all of it is here.
- The peer may wait for room with half a frame written; then the kernel is told how long that frame
  is, counts what is read of it, and a successor learns how many bytes to skip.
- passt resets a connection whose SYN comes again; every other frame may.
- A socket takes a frame of up to ``_ONE_PIECE_BYTES`` at once or not at all; a longer one goes only
  where there is room for all of it.
"""

from __future__ import annotations

from struct import Struct

from devices.virtio.net.ends import EndGoneError
from devices.virtio.net.header import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    PLAIN_HEADER,
)
from sys_util.typing import TYPE_CHECKING, Final, NoReturn
from sys_util.unix_stream import UnixStream

if TYPE_CHECKING:
    from collections.abc import Sequence

# Before each frame on the socket (passt's and QEMU's "stream" protocol).
_LENGTH: Final = Struct(">I")
_LENGTH_BYTES: Final = _LENGTH.size
_MOST_BYTES: Final = _LENGTH_BYTES + MAX_FRAME_BYTES

# How much is looked at; the frames in it are read together. A long one is read by itself.
_WINDOW_BYTES: Final = 64 * 1024
_LONG_BYTES: Final = 16 * 1024

# What Linux puts into one socket buffer even where pages are small: unix_stream_sendmsg() allows
# 32 KiB of whole pages and what fits beside them.
_ONE_PIECE_BYTES: Final = 32 * 1024

_IOV_MAX: Final = 1024

# Ethernet, and IPv4 and TCP with as many options as they have; with IPv6 it is less.
_MOST_SYN_BYTES: Final = 14 + 60 + 60
_ETHER_TYPE: Final = slice(12, 14)
_IPV4: Final = b"\x08\x00"
_IPV6: Final = b"\x86\xdd"
_IP_AT: Final = 14
_IPV6_BYTES: Final = 40
_PROTOCOL_TCP: Final = 6
_TCP_BYTES: Final = 20
_TCP_FLAGS_AT: Final = 13
_SYN: Final = 2


class StreamEnd:
    """Our end of the socket. Owns ``fd``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._stream = UnixStream(fd)
        # Frames: before ``_start`` they were received, before ``_read`` they are out of the stream.
        self._in = memoryview(bytearray(_MOST_BYTES))
        self._start = self._read = self._end = 0
        self._length = memoryview(bytearray(_LENGTH_BYTES))
        self._look_bytes = _WINDOW_BYTES  # after a long frame only a length: they come in rows
        # The rest of a frame that an earlier process began: lost, as on a wire.
        self._skipping = min(self._stream.announced_bytes(), _MOST_BYTES)
        self._missing = self._skipping  # bytes of the frame that was announced
        self._out = b""
        if not self._missing:
            self._stream.announce(0)
        size_bytes = self._stream.send_buffer_bytes
        self._send_buffer_bytes = size_bytes
        # Where a socket becomes writable again, whatever size of frame waits.
        self._always_room_bytes = size_bytes // 4

    @property
    def buffered(self) -> bool:
        return self._start < self._end and not self._missing

    @property
    def unsent(self) -> bool:
        return bool(self._out)

    def close(self) -> None:
        self._stream.close()
        self.fd = -1

    def receive(self, vectors: Sequence[memoryview]) -> int:
        try:
            while True:
                if self.buffered:
                    length = self._deliver(vectors)
                else:
                    length = self._fetch()
                    if length and not self._receive_directly(length, vectors):
                        continue
                if length >= MIN_FRAME_BYTES:  # what is shorter is no frame
                    return HEADER_BYTES + length
        except BlockingIOError:
            raise
        except OSError as error:
            self._lose(error)

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        """``header`` asks for nothing: no offload was on offer."""
        self.flush()
        if self._out:
            raise BlockingIOError
        length = sum(len(part) for part in frame)
        whole = _LENGTH_BYTES + length
        try:
            if whole > _ONE_PIECE_BYTES and not self._has_room(whole):
                raise BlockingIOError
            parts: list[bytes | memoryview] = [_LENGTH.pack(length), *frame]
            # A driver that cuts its frame in more pieces than writev(2) takes is no end of ours.
            sent = self._stream.write(parts if len(parts) <= _IOV_MAX else [b"".join(parts)])
        except BlockingIOError:
            raise
        except OSError as error:
            self._lose(error)
        if sent < whole:  # the host had no memory for its second piece, or its buffers are tiny
            self._out = b"".join((_LENGTH.pack(length), *frame))[sent:]

    def may_repeat(self, frame: Sequence[memoryview]) -> bool:
        short = sum(len(part) for part in frame) <= _MOST_SYN_BYTES
        return not (short and _has_syn(b"".join(frame)))

    def flush(self) -> None:
        if not self._out:
            return
        try:
            self._out = self._out[self._stream.write([self._out]) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)

    def commit(self) -> bool:
        count = self._start - self._read
        if count <= 0 or self._missing:
            return False
        try:
            self._stream.read([self._in[self._read : self._start]])
        except OSError as error:
            self._lose(error)
        self._read = self._start
        return True

    def set_offloads(self, flags: int) -> None:
        """None was on offer."""

    def set_attached(self, *, attached: bool) -> None:
        """There is one queue."""

    def _has_room(self, whole: int) -> bool:
        """Return whether the socket takes so many bytes in one call, pieces and overhead."""
        most = max(self._always_room_bytes, self._send_buffer_bytes - 2 * whole)
        return self._stream.queued_bytes() <= most

    def _fetch(self) -> int:
        """Look for frames; return the length of one that is here, but long.

        Raises:
            BlockingIOError: no frame is whole yet, or ``commit`` is due.
            EndGoneError: there will be none.
        """
        if self._missing:
            self._fetch_missing()
            return 0
        if self._read < self._end:
            raise BlockingIOError
        seen = self._stream.peek(self._in[: self._look_bytes])
        if seen == _LENGTH_BYTES and not self._is_long(0):
            self._look_bytes = _WINDOW_BYTES
            seen = self._stream.peek(self._in[:_WINDOW_BYTES])
        if not seen:
            self._end_of_stream()
        end, length = self._scan(seen)
        if end:
            self._start, self._read, self._end = 0, 0, end
            return 0
        if seen < _LENGTH_BYTES:
            raise BlockingIOError
        whole = _LENGTH_BYTES + length
        if self._stream.readable_bytes() >= whole:
            if length <= _LONG_BYTES:  # more of it has come meanwhile
                return 0
            self._look_bytes = _LENGTH_BYTES
            return length
        # Whoever writes this frame may need the room that its first part takes.
        self._stream.announce(whole)
        self._start, self._read, self._end, self._missing = 0, whole, whole, whole
        return 0

    def _scan(self, seen: int) -> tuple[int, int]:
        """Return where the short frames end that were seen whole, and the length of the last."""
        end, length = 0, 0
        while end + _LENGTH_BYTES <= seen:
            length = _LENGTH.unpack_from(self._in, end)[0]
            if length > MAX_FRAME_BYTES:
                # passt makes no such frame. The stream has no other place to begin again.
                raise EndGoneError("user-mode network: what passt sends is no frame")
            if end + _LENGTH_BYTES + length > seen or length > _LONG_BYTES:
                break
            end += _LENGTH_BYTES + length
        return end, length

    def _is_long(self, at: int) -> bool:
        length: int = _LENGTH.unpack_from(self._in, at)[0]
        return length > _LONG_BYTES

    def _fetch_missing(self) -> None:
        """Go on with the frame that was announced, which then can be received."""
        at = self._end - self._missing if not self._skipping else 0
        count = self._stream.read([self._in[at : at + self._missing]])
        if not count:
            self._end_of_stream()
        self._missing -= count
        if self._missing:
            return
        self._stream.announce(0)
        if self._skipping:
            self._skipping = 0

    def _deliver(self, vectors: Sequence[memoryview]) -> int:
        """Store the next frame, and return its length."""
        start = self._start + _LENGTH_BYTES
        length: int = _LENGTH.unpack_from(self._in, self._start)[0]
        self._start = start + length
        _scatter(PLAIN_HEADER, vectors, 0)
        _scatter(self._in[start : start + length], vectors, HEADER_BYTES)
        return length

    def _receive_directly(self, length: int, vectors: Sequence[memoryview]) -> bool:
        """Read a frame that is here into guest memory, if it is not cut in too many pieces."""
        whole = _LENGTH_BYTES + length
        parts = [self._length, *_cut(vectors, HEADER_BYTES, length)]
        if len(parts) > _IOV_MAX:
            self._start, self._read, self._end = 0, whole, self._stream.read([self._in[:whole]])
            return False
        _scatter(PLAIN_HEADER, vectors, 0)
        if self._stream.read(parts) < whole:
            raise EndGoneError("user-mode network: a frame was cut short")
        return True

    def _end_of_stream(self) -> NoReturn:
        raise EndGoneError("user-mode network: passt has ended")

    def _lose(self, error: OSError) -> NoReturn:
        raise EndGoneError(f"user-mode network: {error.strerror}") from error


def _has_syn(frame: bytes) -> bool:
    """Return whether a frame opens, or accepts, a TCP connection (RFC 9293 §3.1)."""
    if frame[_ETHER_TYPE] == _IPV4 and len(frame) >= _IP_AT + _TCP_BYTES:
        protocol, tcp_at = frame[_IP_AT + 9], _IP_AT + 4 * (frame[_IP_AT] & 15)
    elif frame[_ETHER_TYPE] == _IPV6 and len(frame) >= _IP_AT + _IPV6_BYTES:
        protocol, tcp_at = frame[_IP_AT + 6], _IP_AT + _IPV6_BYTES
    else:
        return False
    if protocol != _PROTOCOL_TCP or len(frame) < tcp_at + _TCP_BYTES:
        return False
    return bool(frame[tcp_at + _TCP_FLAGS_AT] & _SYN)


def _cut(vectors: Sequence[memoryview], skip: int, length: int) -> list[memoryview]:
    """Return the memory of ``length`` bytes in ``vectors``, ``skip`` bytes from their start."""
    found: list[memoryview] = []
    for vector in vectors:
        if skip >= len(vector):
            skip -= len(vector)
            continue
        part = vector[skip : skip + length]
        found.append(part)
        length -= len(part)
        if not length:
            break
        skip = 0
    return found


def _scatter(data: bytes | memoryview, vectors: Sequence[memoryview], skip: int) -> None:
    """Store ``data`` in ``vectors``, ``skip`` bytes from their start."""
    at = 0
    for part in _cut(vectors, skip, len(data)):
        part[:] = data[at : at + len(part)]
        at += len(part)
