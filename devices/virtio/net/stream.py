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
- passt may get out of step (``framing``). Lengths without frames are skipped. Where no frame begins
  all that is here is dropped, and what comes next is believed if it fits: passt begins a frame.
"""

from __future__ import annotations

import errno

from devices.virtio.net import framing
from devices.virtio.net.ends import EndGoneError
from devices.virtio.net.framing import LENGTH, LENGTH_BYTES
from devices.virtio.net.header import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    PLAIN_HEADER,
)
from devices.virtio.net.vectors import cut, scatter
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NoReturn
from sys_util.unix_stream import UnixStream

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_BYTES: Final = LENGTH_BYTES + MAX_FRAME_BYTES

# How much is looked at; the frames in it are read together. A long one is read by itself.
_WINDOW_BYTES: Final = 64 * 1024
_LONG_BYTES: Final = 16 * 1024
_GLANCE_BYTES: Final = 64

# What Linux puts into one socket buffer even where pages are small: unix_stream_sendmsg() allows
# 32 KiB of whole pages and what fits beside them.
_ONE_PIECE_BYTES: Final = 32 * 1024

_IOV_MAX: Final = 1024

# One turn of dropping what is no frame.
_MOST_DROPS: Final = 64

# With these passt is no more; other errors are about one frame.
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

LOG_LINES: Final = 3
LOG_SECONDS: Final = 60.0

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
        self._in = memoryview(bytearray(_MOST_BYTES + framing.HEAD_BYTES))
        self._start = self._read = self._end = 0
        self._length = memoryview(bytearray(LENGTH_BYTES))
        self._look_bytes = _WINDOW_BYTES  # after a long frame only a glance: they come in rows
        # The rest of a frame that an earlier process began: lost, as on a wire.
        self._skipping = min(self._stream.announced_bytes(), _MOST_BYTES)
        self._missing = self._skipping  # bytes of the frame that was announced
        self._judged = bool(self._missing)  # whether that is one
        self._lost = False  # until a frame fits, no other one is believed
        self._dropping = False  # more is here that is no frame
        self._out = b""
        if not self._missing:
            self._stream.announce(0)
        size_bytes = self._stream.send_buffer_bytes
        self._send_buffer_bytes = size_bytes
        # Where a socket becomes writable again, whatever size of frame waits.
        self._always_room_bytes = size_bytes // 4
        self._log = get_logger("devices.virtio.net").limited(LOG_LINES, LOG_SECONDS)

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
        whole = LENGTH_BYTES + length
        try:
            if whole > _ONE_PIECE_BYTES and not self._has_room(whole):
                raise BlockingIOError
            parts: list[bytes | memoryview] = [LENGTH.pack(length), *frame]
            # A driver that cuts its frame in more pieces than writev(2) takes is no end of ours.
            sent = self._stream.write(parts if len(parts) <= _IOV_MAX else [b"".join(parts)])
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._lose(error)
        if sent < whole:  # the host had no memory for its second piece, or its buffers are tiny
            self._out = b"".join((LENGTH.pack(length), *frame))[sent:]

    def may_repeat(self, frame: Sequence[memoryview]) -> bool:
        short = sum(len(part) for part in frame) <= _MOST_SYN_BYTES
        return not (short and _has_syn(b"".join(frame)))

    def flush(self) -> None:
        if not self._out:
            return
        try:
            self._out = self._out[self._stream.write([self._out]) :]
        except OSError as error:
            if error.errno in _GONE:
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
        if self._dropping:
            self._drop()
        if self._missing:
            self._fetch_missing()
            return 0
        if self._read < self._end:
            raise BlockingIOError
        seen = self._stream.peek(self._in[: self._look_bytes])
        if seen == _GLANCE_BYTES == self._look_bytes and not self._is_long():
            self._look_bytes = _WINDOW_BYTES
            seen = self._stream.peek(self._in[:_WINDOW_BYTES])
        if not seen:
            self._end_of_stream()
        end = self._scan(seen)
        if end:
            self._start, self._read, self._end = 0, 0, end
            return 0
        if seen < LENGTH_BYTES:
            raise BlockingIOError
        return self._begin(seen)

    def _begin(self, seen: int) -> int:
        """Deal with what begins the stream, of which not all was seen; return a length as above."""
        verdict = framing.judge(self._in, 0, seen, strict=self._lost)
        if verdict == framing.LOST:
            self._lose_step()
        if verdict > 0:
            self._skip_lengths(self._stream.read([self._in[:verdict]]))
            return 0
        length: int = LENGTH.unpack_from(self._in)[0]
        whole = LENGTH_BYTES + length
        judged = verdict == framing.FRAME
        self._lost = self._lost and not judged
        if judged and self._stream.readable_bytes() >= whole:
            if length <= _LONG_BYTES:  # more of it has come meanwhile
                return 0
            self._look_bytes = _GLANCE_BYTES
            return length
        # Whoever writes this frame may need the room that its first part takes.
        self._stream.announce(whole)
        self._start, self._read, self._end, self._missing = 0, whole, whole, whole
        self._judged = judged
        return 0

    def _scan(self, seen: int) -> int:
        """Return where the short frames end that were seen whole."""
        end = 0
        while end + LENGTH_BYTES <= seen:
            length, kind, total, _ = framing.HEAD.unpack_from(self._in, end)
            if length > _LONG_BYTES or end + LENGTH_BYTES + length > seen:
                break
            if total < framing.LEAST_IP_BYTES or kind != framing.IPV4:
                fits = False  # at first glance
            else:
                fits = total + framing.ETHERNET_BYTES == length
            if not fits and framing.judge(self._in, end, seen, strict=self._lost) != framing.FRAME:
                break
            self._lost = False
            end += LENGTH_BYTES + length
        return end

    def _is_long(self) -> bool:
        length: int = LENGTH.unpack_from(self._in)[0]
        return length > _LONG_BYTES

    def _fetch_missing(self) -> None:
        """Go on with the frame that was announced, which then can be received."""
        at = self._end - self._missing if not self._skipping else 0
        most = self._missing
        if not self._judged:
            most = min(most, max(framing.HEAD_BYTES - at, LENGTH_BYTES))
        count = self._stream.read([self._in[at : at + most]])
        if not count:
            self._end_of_stream()
        self._missing -= count
        if not self._judged:
            self._judge_begun(at + count)
        if self._missing:
            return
        self._stream.announce(0)
        if self._skipping:
            self._skipping = 0

    def _judge_begun(self, seen: int) -> None:
        """Look at a frame, ``seen`` bytes of which are out of the stream already."""
        verdict = framing.judge(self._in, 0, seen, strict=self._lost)
        if verdict == framing.LOST:
            self._lose_step()
        if verdict > 0:
            self._skip_lengths(verdict)
            self._in[: seen - verdict] = bytes(self._in[verdict:seen])
            whole = LENGTH_BYTES + LENGTH.unpack_from(self._in)[0]
            if not seen - verdict < whole <= _MOST_BYTES:
                self._lose_step()
            self._end = self._read = whole
            self._missing = whole - (seen - verdict)
            self._stream.announce(self._missing)
        self._judged = verdict == framing.FRAME
        self._lost = self._lost and not self._judged

    def _skip_lengths(self, count_bytes: int) -> None:
        frames = count_bytes // LENGTH_BYTES
        self._log.warning("user-mode network: passt left out frames: %d", frames)

    def _lose_step(self) -> NoReturn:
        """Drop what is here.

        Raises:
            BlockingIOError: that is all for now.
        """
        self._log.warning("user-mode network: what passt sends is no frame; looking for the next")
        self._start = self._read = self._end = self._missing = 0
        self._stream.announce(0)
        self._lost = self._dropping = True
        self._drop()

    def _drop(self) -> NoReturn:
        for _ in range(_MOST_DROPS):
            try:
                count = self._stream.read([self._in])
            except BlockingIOError:
                self._dropping = False
                raise
            if not count:
                self._end_of_stream()
        raise BlockingIOError

    def _deliver(self, vectors: Sequence[memoryview]) -> int:
        """Store the next frame, and return its length."""
        start = self._start + LENGTH_BYTES
        length: int = LENGTH.unpack_from(self._in, self._start)[0]
        self._start = start + length
        scatter(PLAIN_HEADER, vectors, 0)
        scatter(self._in[start : start + length], vectors, HEADER_BYTES)
        return length

    def _receive_directly(self, length: int, vectors: Sequence[memoryview]) -> bool:
        """Read a frame that is here into guest memory, if it is not cut in too many pieces."""
        whole = LENGTH_BYTES + length
        parts = [self._length, *cut(vectors, HEADER_BYTES, length)]
        if len(parts) > _IOV_MAX:
            self._start, self._read, self._end = 0, whole, self._stream.read([self._in[:whole]])
            return False
        scatter(PLAIN_HEADER, vectors, 0)
        if self._stream.read(parts) < whole:
            self._lose_step()
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
