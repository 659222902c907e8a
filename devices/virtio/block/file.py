# SPDX-License-Identifier: BSD-3-Clause
"""The image behind a block device: whole requests between guest memory and a file.

Every call finishes its request or raises ``OSError``: short transfers are continued, long vectors
cut, and with O_DIRECT what the kernel refuses for its alignment goes through an aligned buffer.
"""

from __future__ import annotations

import errno
import mmap
import os

from devices.virtio.queue.chain import Reader
from sys_util.linux import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.queue.chain import Writer

IOV_MAX: Final = 1024  # UIO_MAXIOV

_BOUNCE_BYTES: Final = 1 << 20
_ZERO_BYTES: Final = 64 << 10

# With these fallocate(2) says that this host cannot do it, now or ever: file systems and old FUSE
# servers, what is no file, and a SCSI target that knows no such command.
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EREMOTEIO})

# Ranges of a block device have to be whole blocks of it; EINVAL says that they are not, and not how
# large its blocks are. Most are up to a page; since Linux 6.15 they may have 64 KiB.
_RANGE_ALIGNMENTS: Final = (1, 4096, 64 << 10)

# What O_DIRECT may ask of offset, length and address; no file system asks for more than a page.
_DIRECT_ALIGNMENTS: Final = (512, 1024, 2048, 4096)


class DiskFile:
    """A raw image, by its descriptor, which stays the caller's.

    With ``writethrough`` a write is on stable storage before it returns.
    """

    def __init__(self, fd: int, *, direct: bool) -> None:
        self.size_bytes = os.lseek(fd, 0, os.SEEK_END)
        self.writethrough = False
        self._stored_zeros = 0
        self._fd = fd
        self._zeros = _anonymous(_ZERO_BYTES)
        self._direct = direct
        self._bounce = _anonymous(_BOUNCE_BYTES)
        self._alignment = direct_alignment(fd) if direct else 1

    @property
    def alignment(self) -> int:
        """What O_DIRECT asks of the size of the image, in bytes; 1 without it."""
        return self._alignment

    def read(self, writer: Writer, offset: int) -> None:
        """Fill ``writer`` with the bytes at ``offset``."""
        while length := writer.remaining:
            try:
                got = os.preadv(self._fd, writer.iovecs(length)[:IOV_MAX], offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._read_bounced(writer, offset)
                return
            if not got:
                raise OSError(errno.EIO, "the image ends early")
            writer.commit(got)
            offset += got

    def write(self, reader: Reader, offset: int) -> None:
        """Store all that is left in ``reader`` at ``offset``."""
        flags = os.RWF_DSYNC if self.writethrough else 0
        while length := reader.remaining:
            try:
                done = os.pwritev(self._fd, reader.iovecs(length)[:IOV_MAX], offset, flags)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._write_bounced(reader, offset, flags)
                return
            if not done:
                raise OSError(errno.EIO, "the image takes no more")
            reader.skip(done)
            offset += done

    def flush(self) -> None:
        """Put every finished write on stable storage."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the space of a range back to the host, as far as it can: it is no promise."""
        self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros, its space given back with ``unmap`` and kept without."""
        # With FALLOC_FL_KEEP_SIZE this call would take space past the end of the image, which no
        # limit bounds; without, RLIMIT_FSIZE does. The policy knows only this form.
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE if unmap else FALLOC_FL_ZERO_RANGE
        start, stop = self._fallocate(mode, offset, length)
        self._store_zeros(offset, start - offset)
        self._store_zeros(stop, offset + length - stop)  # all, where tmpfs knows no ZERO_RANGE
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
        """Return how many bytes ``write_zeroes`` had to store since this was asked last."""
        count, self._stored_zeros = self._stored_zeros, 0
        return count

    def _store_zeros(self, offset: int, length: int) -> None:
        while length:
            step = min(length, _BOUNCE_BYTES)
            whole, rest = divmod(step, _ZERO_BYTES)
            vectors = [self._zeros] * whole
            if rest:
                vectors.append(self._zeros[:rest])
            self.write(Reader(0, vectors, step), offset)
            self._stored_zeros += step
            offset += step
            length -= step

    def _read_bounced(self, writer: Writer, offset: int) -> None:
        while writer.remaining:
            lead = offset % self._alignment
            wanted = self._round_up(lead + writer.remaining)
            buffer = self._bounce[: min(wanted, _BOUNCE_BYTES)]
            got = os.preadv(self._fd, [buffer], offset - lead)
            useful = min(got - lead, writer.remaining)
            if useful <= 0:
                raise OSError(errno.EIO, "the image ends early")
            writer.write(buffer[lead : lead + useful])
            offset += useful

    def _write_bounced(self, reader: Reader, offset: int, flags: int) -> None:
        """Write whole blocks; what a request leaves of a block is read back first."""
        while reader.remaining:
            lead = offset % self._alignment
            length = min(reader.remaining, _BOUNCE_BYTES - lead)
            buffer = self._bounce[: self._round_up(lead + length)]
            if len(buffer) != length:
                self._whole(os.preadv(self._fd, [buffer], offset - lead), buffer)
            buffer[lead : lead + length] = reader.read(length)
            self._whole(os.pwritev(self._fd, [buffer], offset - lead, flags), buffer)
            offset += length

    def _round_up(self, length: int) -> int:
        return -(-length // self._alignment) * self._alignment

    @staticmethod
    def _whole(done: int, buffer: memoryview) -> None:
        if done != len(buffer):
            raise OSError(errno.EIO, f"{done} of {len(buffer)} bytes of a direct transfer")


def direct_alignment(fd: int) -> int:
    """Return what O_DIRECT transfers of ``fd`` have to be aligned to, by trying.

    Raises:
        OSError: not even whole pages can be read.
    """
    buffer = _anonymous(2 * mmap.PAGESIZE)
    for alignment in _DIRECT_ALIGNMENTS[:-1]:
        try:
            # At offset 0: past the end of a tiny image nothing would be checked.
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
