# SPDX-License-Identifier: BSD-3-Clause
"""A raw image: whole requests between memory, such as a guest's, and a file.

Every call finishes its request or raises ``OSError``. Short transfers are continued, and vectors
above IOV_MAX are divided. With O_DIRECT, a transfer that the kernel refuses for its alignment goes
through an aligned buffer.
"""

from __future__ import annotations

import errno
import mmap
import os

from sys_util.linux import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)
from sys_util.typing import Final, Protocol

IOV_MAX: Final = 1024  # UIO_MAXIOV

_BOUNCE_BYTES: Final = 1 << 20
_ZERO_BYTES: Final = 64 << 10

# With these fallocate(2) says that the host can never do it: file systems, old FUSE servers, files
# that are not regular, SCSI targets that do not know such a command.
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EREMOTEIO})

# Ranges of a block device have to be whole blocks of it. EINVAL says that they are not, but not how
# large the blocks are. Most blocks are up to a page; since Linux 6.15 they may have 64 KiB.
_RANGE_ALIGNMENTS: Final = (1, 4096, 64 << 10)

# Alignments of offset, length and address that O_DIRECT may ask for; none is above a page.
_DIRECT_ALIGNMENTS: Final = (512, 1024, 2048, 4096)


class Sink(Protocol):
    """Memory that is to be filled, in its order; those of a chain are such."""

    remaining: int

    def iovecs(self, length: int) -> list[memoryview]:
        """Return the memory of the next ``length`` bytes, without consuming them."""
        ...

    def commit(self, length: int) -> None:
        """Consume ``length`` bytes, which were stored through ``iovecs``."""
        ...

    def write(self, data: memoryview) -> None:
        """Store ``data`` in the next bytes and consume them."""
        ...


class Source(Protocol):
    """Memory whose bytes are to be stored, in their order."""

    remaining: int

    def iovecs(self, length: int) -> list[memoryview]:
        """Return the memory of the next ``length`` bytes, without consuming them."""
        ...

    def skip(self, length: int) -> None:
        """Consume ``length`` bytes, which were stored through ``iovecs``."""
        ...

    def read(self, length: int) -> bytes:
        """Return a copy of the next ``length`` bytes and consume them."""
        ...


class DiskFile:
    """A raw image, by its descriptor, which the caller still owns.

    With ``writethrough`` a write is on stable storage before it returns.
    """

    def __init__(self, fd: int, *, direct: bool) -> None:
        self.size_bytes = os.lseek(fd, 0, os.SEEK_END)
        self.writethrough = False
        self._stored_zeros = 0
        self._fd = fd
        self._direct = direct
        self._bounce = _anonymous(_BOUNCE_BYTES)
        self._alignment = direct_alignment(fd) if direct else 1

    @property
    def alignment(self) -> int:
        """The alignment in bytes that O_DIRECT asks for; 1 without it."""
        return self._alignment

    def read(self, sink: Sink, offset: int) -> None:
        """Fill ``sink`` with the bytes at ``offset``."""
        while length := sink.remaining:
            try:
                got = os.preadv(self._fd, sink.iovecs(length)[:IOV_MAX], offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._read_bounced(sink, offset)
                return
            if not got:
                raise OSError(errno.EIO, "the image ends early")
            sink.commit(got)
            offset += got

    def write(self, source: Source, offset: int) -> None:
        """Store all that is left in ``source`` at ``offset``."""
        flags = os.RWF_DSYNC if self.writethrough else 0
        while length := source.remaining:
            try:
                done = os.pwritev(self._fd, source.iovecs(length)[:IOV_MAX], offset, flags)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._write_bounced(source, offset, flags)
                return
            if not done:
                raise OSError(errno.EIO, "the image takes no more")
            source.skip(done)
            offset += done

    def flush(self) -> None:
        """Put every finished write on stable storage."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the space of a range back to the host, as far as the host can do that."""
        self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros; give its space back with ``unmap``, keep it otherwise."""
        # ZERO_RANGE with FALLOC_FL_KEEP_SIZE could take space past the end of the image without
        # any bound. Without that flag RLIMIT_FSIZE bounds it, so the policy allows only this form.
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE if unmap else FALLOC_FL_ZERO_RANGE
        start, stop = self._fallocate(mode, offset, length)
        self._store_zeros(offset, start - offset)
        self._store_zeros(stop, offset + length - stop)  # all of it on tmpfs: it has no ZERO_RANGE
        if self.writethrough:
            self.flush()

    def _fallocate(self, mode: int, offset: int, length: int) -> tuple[int, int]:
        """Call fallocate(2) for as much of a range as the host takes.

        Returns:
            Start and end of that part: all of the range, its whole blocks, or nothing.
        """
        end = offset + length
        for alignment in _RANGE_ALIGNMENTS:
            start, stop = -(-offset // alignment) * alignment, end // alignment * alignment
            if start >= stop:
                break
            try:
                fallocate(self._fd, mode, start, stop - start)
            except OSError as error:
                if error.errno in _CANNOT:
                    break
                if error.errno != errno.EINVAL:
                    raise
            else:
                return start, stop
        return offset, offset

    def take_stored_zeros(self) -> int:
        """Return how many bytes ``write_zeroes`` had to write since the last call."""
        count, self._stored_zeros = self._stored_zeros, 0
        return count

    def _store_zeros(self, offset: int, length: int) -> None:
        while length:
            step = min(length, _BOUNCE_BYTES)
            self.write(_Zeros(step), offset)
            self._stored_zeros += step
            offset += step
            length -= step

    def _read_bounced(self, sink: Sink, offset: int) -> None:
        while sink.remaining:
            lead = offset % self._alignment
            wanted = self._round_up(lead + sink.remaining)
            buffer = self._bounce[: min(wanted, _BOUNCE_BYTES)]
            got = os.preadv(self._fd, [buffer], offset - lead)
            useful = min(got - lead, sink.remaining)
            if useful <= 0:
                raise OSError(errno.EIO, "the image ends early")
            sink.write(buffer[lead : lead + useful])
            offset += useful

    def _write_bounced(self, source: Source, offset: int, flags: int) -> None:
        """Write whole blocks; read a block first if the request covers only a part of it."""
        while source.remaining:
            lead = offset % self._alignment
            length = min(source.remaining, _BOUNCE_BYTES - lead)
            buffer = self._bounce[: self._round_up(lead + length)]
            if len(buffer) != length:
                self._whole(os.preadv(self._fd, [buffer], offset - lead), buffer)
            buffer[lead : lead + length] = source.read(length)
            self._whole(os.pwritev(self._fd, [buffer], offset - lead, flags), buffer)
            offset += length

    def _round_up(self, length: int) -> int:
        return -(-length // self._alignment) * self._alignment

    @staticmethod
    def _whole(done: int, buffer: memoryview) -> None:
        if done != len(buffer):
            raise OSError(errno.EIO, f"{done} of {len(buffer)} bytes of a direct transfer")


class _Zeros:
    """A source of ``remaining`` zeros."""

    def __init__(self, remaining: int) -> None:
        self.remaining = remaining

    def iovecs(self, length: int) -> list[memoryview]:
        whole, rest = divmod(length, _ZERO_BYTES)
        return [_ZEROS] * whole + [_ZEROS[:rest]] * bool(rest)

    def skip(self, length: int) -> None:
        self.remaining -= length

    def read(self, length: int) -> bytes:
        self.skip(length)
        return bytes(length)


def direct_alignment(fd: int) -> int:
    """Find out by trying what O_DIRECT transfers of ``fd`` have to be aligned to.

    Raises:
        OSError: not even whole pages can be read.
    """
    buffer = _anonymous(2 * mmap.PAGESIZE)
    for alignment in _DIRECT_ALIGNMENTS[:-1]:
        try:
            # At offset 0, because past the end of a tiny image the kernel checks nothing.
            os.preadv(fd, [buffer[alignment : 2 * alignment]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return alignment
    os.preadv(fd, [buffer[: _DIRECT_ALIGNMENTS[-1]]], 0)
    return _DIRECT_ALIGNMENTS[-1]


def _anonymous(length: int) -> memoryview:
    """Return page-aligned private memory full of zeros, which costs nothing until touched."""
    return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


_ZEROS: Final = _anonymous(_ZERO_BYTES)
