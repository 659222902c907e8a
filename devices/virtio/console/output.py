# SPDX-License-Identifier: BSD-3-Clause
"""The way out of one console port: from guest memory to a descriptor of the host, never waiting.

A *console* (hvcN) must never be held up: Linux waits for each piece of its output with interrupts
off, so a reader that stops would stop a processor of the guest. What the reader does not take is
kept in a ``Backlog``. When that is full, output is dropped, and its amount is logged later.

A *data* port (/dev/vportNpM) waits as a pipe does: its bytes stay in guest memory until there is
room for them, and the program in the guest sleeps.

How much was written is stored right after each system call, for a restarted process. Only if the
process is killed between the two, it writes the bytes of that call again.
"""

from __future__ import annotations

import errno
import os

from devices.virtio.console.backlog import HEAD, WRITTEN
from sys_util import socket
from sys_util.event_loop import EPOLLOUT
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.virtio.console.backlog import Backlog
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import Reader

# The most for one system call: a chain may be 4 GiB of overlapping buffers in a thousand pieces.
CHUNK_BYTES: Final = 64 * 1024
IOV_MAX: Final = 1024

# The longest line of a datagram, as in crosvm; longer ones are cut.
MAX_LINE_BYTES: Final = 1024

# The first of the device's own counters, see crosvm_py/kinds/console.py.
_DROPPED_BYTES: Final = 0

_log = get_logger("devices.virtio.console").limited()


class Output:
    """Bytes to a stream: a file, a pipe, a terminal, a socket. Owns the descriptor."""

    def __init__(self, label: str, fd: int, backlog: Backlog, *, lossy: bool) -> None:
        """``lossy``: output without room is dropped, instead of left in guest memory."""
        self.fd = fd
        self.backlog = backlog
        self.blocked = False  # ``on_room`` will be called
        self.on_room: Callable[[], None] = _nothing
        self.on_kept: Callable[[], None] = _nothing  # the backlog has grown
        self.dropped_bytes = 0
        self._label = label
        self._lossy = lossy
        self._gone = False
        self._context: DeviceContext | None = None

    @property
    def holds(self) -> bool:
        """Whether bytes wait in guest memory for room; never those of a console."""
        return self.blocked and not self._lossy

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of a console's output wait for their reader."""
        return len(self.backlog) if self.blocked else 0

    def attach(self, context: DeviceContext) -> None:
        """Take the device's context."""
        self._context = context

    def go_on(self) -> None:
        """Write what an earlier process left."""
        if self.backlog and self._context is not None:
            self._context.call_later(0.0, self._flush)

    def write(self, reader: Reader, limit_bytes: int, progress: int) -> None:
        """Consume up to ``limit_bytes`` of ``reader``, fewer if ``blocked`` gets set.

        ``progress`` is the value of the cell for what was consumed of the chain before.
        """
        while not self.backlog and not self.blocked:
            if self._gone:
                reader.skip(reader.remaining)
            length = min(reader.remaining, limit_bytes, CHUNK_BYTES)
            if not length:
                return
            vectors = reader.iovecs(length)[:IOV_MAX]
            taken = self._try(vectors, length, WRITTEN, progress)
            reader.skip(taken)
            limit_bytes -= taken
            progress += taken
        if self._lossy:
            self._keep(reader, min(reader.remaining, limit_bytes))

    def write_now(self, data: bytes) -> None:
        """Write ``data`` behind what waits already, or drop it if there is no room."""
        if not self._gone and len(data) <= self.backlog.room:
            self.backlog.append([data])
            self.on_kept()
            self._flush()

    def close(self) -> None:
        """Close the descriptor; the device must not be used after this."""
        fd, self.fd = self.fd, -1
        os.close(fd)

    def _keep(self, reader: Reader, length: int) -> None:
        if not length:
            return
        room = 0 if self._gone else min(length, self.backlog.room)
        self.backlog.append(reader.iovecs(room))
        if length > room:
            length = reader.remaining  # drop all of a chain in this turn, not in thousands
        reader.skip(length)
        if length > room:
            self._drop(length - room)
        self.on_kept()
        self._flush()

    def _flush(self) -> None:
        """Write as much of the backlog as the host takes now."""
        while self.backlog and not self.blocked:
            piece = self.backlog.peek(CHUNK_BYTES)
            self._try([piece], len(piece), HEAD, self.backlog.head)

    def _try(
        self, vectors: Sequence[bytes | memoryview], length: int, cell: int, before: int
    ) -> int:
        """Write once, add the count to ``cell``, whose value is ``before``, and return it.

        It is 0 when blocked, and ``length`` when the host will never take the bytes.
        """
        cells = self.backlog.cells
        try:
            taken = self._send(vectors)
            cells[cell] = before + taken
        except BlockingIOError:
            self._block()
            return 0
        except OSError as error:
            cells[cell] = before + length
            self._failed(error)
            return length
        return taken

    def _send(self, vectors: Sequence[bytes | memoryview]) -> int:
        return os.writev(self.fd, vectors)

    def _drop(self, length: int) -> None:
        if self._gone:
            return  # the reader has gone, so nothing is lost
        self.dropped_bytes += length
        if self._context is not None:
            self._context.counters.add(_DROPPED_BYTES, length)

    def _failed(self, error: OSError) -> None:
        """Note that the reader has gone or the disk is full; the guest goes on."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            _log.warning("%s: %s; output is lost", self._label, error.strerror)
            return
        self._gone = True
        self.backlog.cells[HEAD] = self.backlog.tail
        _log.warning("%s: %s; output goes nowhere from here on", self._label, error.strerror)

    # Events

    def _block(self) -> None:
        if not self.blocked and self._context is not None:
            self.blocked = True
            self._context.add_fd(self.fd, self._on_writable, events=EPOLLOUT)

    def _on_writable(self, _events: int) -> None:
        if self._context is None:
            return
        self.blocked = False
        self._context.remove_fd(self.fd)
        self._flush()
        if self.blocked:
            return
        lost, self.dropped_bytes = self.dropped_bytes, 0
        if lost and not self._gone:
            _log.warning("%s: %d bytes dropped: the reader is too slow", self._label, lost)
        self.on_room()


class SocketOutput(Output):
    """A stream socket. Others may use it too, so it stays blocking; each call asks not to wait."""

    def __init__(self, label: str, fd: int, backlog: Backlog, *, lossy: bool) -> None:
        super().__init__(label, fd, backlog, lossy=lossy)
        self._socket = socket.socket(fileno=fd)

    def close(self) -> None:
        self.fd = -1
        self._socket.close()

    def _send(self, vectors: Sequence[bytes | memoryview]) -> int:
        return self._socket.send(b"".join(vectors), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class LineOutput(SocketOutput):
    """One datagram for each line, with a prefix. It is for logs, so it always drops."""

    def __init__(self, label: str, fd: int, backlog: Backlog, prefix: bytes) -> None:
        super().__init__(label, fd, backlog, lossy=True)
        self._prefix = prefix
        self._line_bytes = 0

    def write(self, reader: Reader, limit_bytes: int, progress: int) -> None:
        self._keep(reader, min(reader.remaining, limit_bytes))

    def _flush(self) -> None:
        while not self.blocked:
            start = self.backlog.peek(MAX_LINE_BYTES + 1)
            end = start.find(b"\n")
            if end < 0 and len(start) <= MAX_LINE_BYTES:
                return
            line = start[: MAX_LINE_BYTES if end < 0 else end]
            self._line_bytes = len(line) + (end >= 0)
            if self._prefix and not line.strip(b"\r"):
                self.backlog.cells[HEAD] += self._line_bytes
            else:
                pieces = [self._prefix, line.removesuffix(b"\r")]
                self._try(pieces, self._line_bytes, HEAD, self.backlog.head)

    def _send(self, vectors: Sequence[bytes | memoryview]) -> int:
        super()._send(vectors)
        return self._line_bytes  # of the backlog


class PolledOutput(Output):
    """A pipe or terminal that others share, so that it blocks: write only what surely fits."""

    def __init__(
        self, label: str, fd: int, backlog: Backlog, limit_bytes: int, *, lossy: bool
    ) -> None:
        super().__init__(label, fd, backlog, lossy=lossy)
        self._limit_bytes = limit_bytes
        self._ready = False

    def _send(self, vectors: Sequence[bytes | memoryview]) -> int:
        if not self._ready:
            raise BlockingIOError
        self._ready = False
        return os.writev(self.fd, [vectors[0][: self._limit_bytes]])

    def _on_writable(self, events: int) -> None:
        self._ready = True
        super()._on_writable(events)


def _nothing() -> None:
    """Do nothing."""
