# SPDX-License-Identifier: BSD-3-Clause
"""The host's end of a network device: a queue of a TAP, or a stream socket to passt.

Both speak in frames with struct virtio_net_hdr before them. Nothing here waits.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from devices.virtio.net_header import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    PLAIN_HEADER,
)
from sys_util import tap
from sys_util.errors import VmmError
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

# Before each frame on the socket (passt's and QEMU's "stream" protocol).
_LENGTH: Final = Struct(">I")
_READ_BYTES: Final = 256 * 1024


class EndGoneError(VmmError):
    """The network behind the device is no more: the TAP was deleted, or passt has ended."""


class NetEnd(Protocol):
    """Where frames go to and come from."""

    fd: int

    @property
    def buffered(self) -> bool:
        """Whether a frame is here that the readiness of ``fd`` does not tell of."""
        ...

    @property
    def unsent(self) -> bool:
        """Whether bytes of an accepted frame wait until ``fd`` can be written."""
        ...

    def receive(self, vectors: Sequence[memoryview]) -> int:
        """Store header and frame in ``vectors``, which are large enough; return their length.

        Raises:
            BlockingIOError: there is no frame now.
            EndGoneError: nor will there be one.
        """
        ...

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        """Pass one frame on.

        Raises:
            BlockingIOError: not now.
            EndGoneError: never again.
            OSError: not this frame.
        """
        ...

    def flush(self) -> None:
        """Write what is ``unsent``, as far as ``fd`` takes it.

        Raises:
            EndGoneError: nobody will ever take it.
        """
        ...

    def set_offloads(self, flags: int) -> None:
        """Say what the driver can take, in the TUN_F_* of TUNSETOFFLOAD."""
        ...

    def set_attached(self, *, attached: bool) -> None:
        """Take this queue into, or out of, the spreading of frames over queues."""
        ...


class TapEnd:
    """One queue of a TAP, non-blocking, with a virtio_net_hdr of 12 bytes. Owns ``fd``."""

    buffered: Final = False
    unsent: Final = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._attached = True

    def find_attached(self) -> bool:
        """Learn whether the queue is attached: an earlier process may have had it otherwise."""
        self._attached = tap.is_attached(self.fd)
        return self._attached

    def receive(self, vectors: Sequence[memoryview]) -> int:
        try:
            return os.readv(self.fd, vectors)
        except BlockingIOError:
            raise
        except OSError as error:
            raise EndGoneError(f"TAP: {error.strerror}") from error

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        try:
            os.writev(self.fd, [header, *frame])
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise EndGoneError(f"TAP: {error.strerror}") from error
            raise

    def flush(self) -> None:
        """A TAP takes a frame whole or not at all."""

    def set_offloads(self, flags: int) -> None:
        tap.set_offloads(self.fd, flags)

    def set_attached(self, *, attached: bool) -> None:
        if attached != self._attached:
            self._attached = attached
            tap.attach_queue(self.fd, attached=attached)


class StreamEnd:
    """A non-blocking stream socket, each frame after its length. No headers travel. Owns ``fd``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._in = memoryview(bytearray(_READ_BYTES))
        self._start = 0
        self._end = 0
        self._out = b""

    @property
    def buffered(self) -> bool:
        return self._end - self._start >= _LENGTH.size + self._frame_bytes()

    @property
    def unsent(self) -> bool:
        return bool(self._out)

    def receive(self, vectors: Sequence[memoryview]) -> int:
        length = 0
        while length < MIN_FRAME_BYTES:  # what is shorter is no frame
            while not self.buffered:
                self._read()
            length = min(self._frame_bytes(), MAX_FRAME_BYTES)
            start = self._start + _LENGTH.size
            self._start = start + length
        _scatter(PLAIN_HEADER, vectors, 0)
        _scatter(self._in[start : start + length], vectors, HEADER_BYTES)
        return HEADER_BYTES + length

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        """``header`` asks for nothing: no offload was on offer."""
        self.flush()
        if self._out:
            raise BlockingIOError
        length = sum(len(part) for part in frame)
        whole = _LENGTH.size + length
        try:
            sent = os.writev(self.fd, [_LENGTH.pack(length), *frame])
        except BlockingIOError:
            raise
        except OSError as error:
            raise EndGoneError(f"user-mode network: {error.strerror}") from error
        if sent < whole:
            self._out = b"".join((_LENGTH.pack(length), *frame))[sent:]

    def flush(self) -> None:
        if not self._out:
            return
        try:
            self._out = self._out[os.writev(self.fd, [self._out]) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise EndGoneError(f"user-mode network: {error.strerror}") from error

    def set_offloads(self, flags: int) -> None:
        """None was on offer."""

    def set_attached(self, *, attached: bool) -> None:
        """There is one queue."""

    def _frame_bytes(self) -> int:
        """Return the length of the next frame, or more than there can be when it is not here."""
        if self._end - self._start < _LENGTH.size:
            return _READ_BYTES
        length: int = _LENGTH.unpack_from(self._in, self._start)[0]
        # passt makes no such frame. The stream has no other place to begin again.
        return min(length, _READ_BYTES)

    def _read(self) -> None:
        """Read on behind what is here; the beginning of a frame moves to the front first."""
        left = self._end - self._start
        if left >= _LENGTH.size and self._frame_bytes() > MAX_FRAME_BYTES:
            raise EndGoneError("user-mode network: what passt sends is no frame")
        self._in[:left] = bytes(self._in[self._start : self._end])
        self._start, self._end = 0, left
        try:
            count = os.readv(self.fd, [self._in[left:]])
        except BlockingIOError:
            raise
        except OSError as error:
            raise EndGoneError(f"user-mode network: {error.strerror}") from error
        if not count:
            raise EndGoneError("user-mode network: passt has ended")
        self._end += count


def _scatter(data: bytes | memoryview, vectors: Sequence[memoryview], skip: int) -> None:
    """Store ``data`` in ``vectors``, ``skip`` bytes from their start."""
    at = 0
    for vector in vectors:
        if skip >= len(vector):
            skip -= len(vector)
            continue
        size = min(len(vector) - skip, len(data) - at)
        vector[skip : skip + size] = data[at : at + size]
        at += size
        skip = 0
        if at == len(data):
            return
