# SPDX-License-Identifier: BSD-3-Clause
"""The stream socket to user-mode networking: each frame after its length, and no headers.

The device process may be killed at any moment, and a restarted one goes on with the same socket. So
only whole frames are read from it, and only whole frames are written to it:

- Frames are first only peeked at (MSG_PEEK), and read once the driver has them. So after a restart
  they may come twice, but none is lost: some versions of passt never repeat an acknowledgment. A
  long frame carries data, which passt does repeat, so it is read into guest memory directly, when
  all of it has come.
- passt may have written half a frame and wait for room. Then that half is read, and the kernel is
  told the length of the frame (SO_PEEK_OFF). It subtracts what is read, so that a restarted process
  can ask how many bytes of the frame to skip.
- passt resets a connection if its SYN comes again; every other frame may come again.
- A socket takes a frame of up to ``_ONE_PIECE_BYTES`` whole or not at all. A longer one is written
  only when there is room for all of it.
- passt may send lengths without frames (``framing.py``); they are skipped. Where no frame is found,
  all data that has come is dropped. Then the next frame whose lengths match is believed again.
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

# How much is peeked at: all short frames, or just the start of a long one.
_WINDOW_BYTES: Final = 64 * 1024
_LONG_BYTES: Final = 16 * 1024
_GLANCE_BYTES: Final = 64

# A write of up to this size gets one socket buffer, even with small pages: unix_stream_sendmsg()
# allows 32 KiB of whole pages, and what fits beside them.
_ONE_PIECE_BYTES: Final = 32 * 1024

_IOV_MAX: Final = 1024

# How often to read in one turn while dropping data that is no frame.
_MOST_DROPS: Final = 64

# With these errors passt has ended; others concern one frame.
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

LOG_LINES: Final = 3
LOG_SECONDS: Final = 60.0

# Ethernet, and IPv4 and TCP with the most options that they can have; with IPv6 it is less.
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
    """The device's end of the socket. Owns ``fd``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._stream = UnixStream(fd)
        # Frames up to ``_start`` were received; up to ``_read`` they were removed from the socket.
        self._in = memoryview(bytearray(_MOST_BYTES + framing.HEAD_BYTES))
        self._start = self._read = self._end = 0
        self._length = memoryview(bytearray(LENGTH_BYTES))
        self._look_bytes = _WINDOW_BYTES  # few after a long frame: the next may be long, too
        # The rest of a frame that an earlier process began to read; the frame is lost.
        self._skipping = min(self._stream.announced_bytes(), _MOST_BYTES)
        self._missing = self._skipping  # bytes of the announced frame that have not come
        self._judged = bool(self._missing)  # whether it is known to be a frame
        self._lost = False  # believe only a frame whose lengths match
        self._dropping = False  # there is more data to drop
        self._out = b""
        if not self._missing:
            self._stream.announce(0)
        size_bytes = self._stream.send_buffer_bytes
        self._send_buffer_bytes = size_bytes
        # Below this the socket is writable for epoll, for any size of frame.
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
                if length >= MIN_FRAME_BYTES:  # ignore shorter ones
                    return HEADER_BYTES + length
        except BlockingIOError:
            raise
        except OSError as error:
            self._lose(error)

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        """``header`` is empty: no offload is offered."""
        self.flush()
        if self._out:
            raise BlockingIOError
        length = sum(len(part) for part in frame)
        whole = LENGTH_BYTES + length
        try:
            if whole > _ONE_PIECE_BYTES and not self._has_room(whole):
                raise BlockingIOError
            parts: list[bytes | memoryview] = [LENGTH.pack(length), *frame]
            # More pieces than writev(2) takes would be an error, so join them.
            sent = self._stream.write(parts if len(parts) <= _IOV_MAX else [b"".join(parts)])
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._lose(error)
        if sent < whole:  # the host was short of memory, or its socket buffers are tiny
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
        """Do nothing: no offload is offered."""

    def set_attached(self, *, attached: bool) -> None:
        """Do nothing: there is one queue."""

    def _has_room(self, whole: int) -> bool:
        """Return whether the socket takes ``whole`` bytes in one call, with its overhead."""
        most = max(self._always_room_bytes, self._send_buffer_bytes - 2 * whole)
        return self._stream.queued_bytes() <= most

    def _fetch(self) -> int:
        """Look for frames; return the length of a long one that has come, else 0.

        Raises:
            BlockingIOError: no whole frame has come, or ``commit`` has to be called first.
            EndGoneError: no frame will ever come.
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
        """Handle a frame of which only the start was peeked at; return a length as ``_fetch``."""
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
            if length <= _LONG_BYTES:  # the rest came meanwhile: peek again
                return 0
            self._look_bytes = _GLANCE_BYTES
            return length
        # Read the first part: passt may need its room to write the rest.
        self._stream.announce(whole)
        self._start, self._read, self._end, self._missing = 0, whole, whole, whole
        self._judged = judged
        return 0

    def _scan(self, seen: int) -> int:
        """Return where those short frames end that were peeked at as a whole."""
        end = 0
        while end + LENGTH_BYTES <= seen:
            length, kind, total, _ = framing.HEAD.unpack_from(self._in, end)
            if length > _LONG_BYTES or end + LENGTH_BYTES + length > seen:
                break
            if total < framing.LEAST_IP_BYTES or kind != framing.IPV4:
                fits = False  # ``judge`` decides
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
        """Read more of the announced frame; when it is complete, it can be received."""
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
        """Check a frame, ``seen`` bytes of which were read from the socket already."""
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
        """Drop all data that has come, as no frame can be found in it.

        Raises:
            BlockingIOError: always, unless passt has ended.
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
        """Read a frame into guest memory; return False if that has too many pieces."""
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
        raise EndGoneError("passt has ended")

    def _lose(self, error: OSError) -> NoReturn:
        raise EndGoneError(f"passt has ended ({error.strerror})") from error


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
