# SPDX-License-Identifier: BSD-3-Clause
"""Kernels that were read before their run: by the pool, for the monitors that it starts.

A run uses one only if the file that it has opened itself is the same: its identity, size and times,
and a digest of all that is in it. So nobody who may not change the file can change what is booted.
A 14 MiB bzImage takes 64 ms to unpack and 16 to digest; an ELF file takes 6 ms to read whatever
its size, so a large one is not kept here.
"""

from __future__ import annotations

import os

from crosvm_py.file_parser.protocol import Parsed
from kernel_loader.image import KernelImage, ParsedKernel
from kernel_loader.source import FileSource
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U64, blob, sequence

if TYPE_CHECKING:
    from crosvm_py.config import RunConfig
    from sys_util.wire import Check

_DIGEST_BYTES: Final = 32
_STATUS_FIELDS: Final = 5
# A digest of a larger file takes longer than reading an ELF kernel.
MAX_ELF_BYTES: Final = 2 << 20
_CHUNK_BYTES: Final = 1 << 20


@fact
class PreparedKernel:
    """What the parser said of a file; the unpacked kernel is in a sealed memfd beside the message.

    ``status`` has the device, inode, size, and both times of the file in nanoseconds.
    """

    TYPE: ClassVar[int] = 13
    FIELDS: ClassVar[tuple[Check, ...]] = (
        sequence(U64, _STATUS_FIELDS),
        blob(_DIGEST_BYTES),
        *Parsed.FIELDS,
    )
    status: tuple[int, ...]
    digest: bytes
    kernel: ParsedKernel


class ReadyKernel:
    """Stands in for the process that reads a kernel, where one has done so. Owns both files."""

    def __init__(self, source: FileSource, kernel: ParsedKernel, unpacked_fd: int) -> None:
        self._source = source
        self._kernel = kernel
        self._unpacked_fd = unpacked_fd

    def image(self) -> KernelImage:
        """Return the kernel, which owns the file that contains it.

        Raises:
            ProtocolError: it makes no sense.
        """
        source = self._source
        if self._unpacked_fd >= 0:
            name = f"{source.what} ({self._kernel.kind.rpartition(' ')[2]} payload)"
            source = FileSource(name, self._unpacked_fd, self._kernel.unpacked_bytes)
        image = KernelImage(source, self._kernel)
        self._unpacked_fd = -1
        if source is self._source:
            self._source = FileSource(source.what, -1, 0)
        return image

    def close(self) -> None:
        """Close what no image owns. May be called again."""
        self._source.close()
        if self._unpacked_fd >= 0:
            os.close(self._unpacked_fd)
            self._unpacked_fd = -1


# With the descriptor of the unpacked kernel, or -1. This process owns it.
_kernels: list[tuple[PreparedKernel, int]] = []


def keep_prepared(kernel: PreparedKernel, unpacked_fd: int) -> None:
    """Use ``kernel`` in a run of its file. Owns ``unpacked_fd``, unless it is -1."""
    _kernels.append((kernel, unpacked_fd))


def prepared_fds() -> list[int]:
    """Return the descriptors of all unpacked kernels."""
    return [fd for _, fd in _kernels if fd >= 0]


def move_prepared(moved: dict[int, int]) -> None:
    """Note that the descriptors have other numbers now."""
    _kernels[:] = [(kernel, moved.get(fd, fd)) for kernel, fd in _kernels]


def find_prepared(config: RunConfig) -> ReadyKernel | None:
    """Return the kernel of a run, if it was read before.

    Raises:
        HostError, ConfigError: the file cannot be read.
    """
    if not _kernels or not config.sandbox:
        return None
    follow = config.kernel not in config.guest_files
    source = FileSource.open("kernel", config.kernel, follow=follow)
    status = status_of(source.fd)
    for at, (kernel, unpacked_fd) in enumerate(_kernels):
        if kernel.status == status and kernel.digest == digest_of(source):
            del _kernels[at]
            return ReadyKernel(source, kernel.kernel, unpacked_fd)
    source.close()
    return None


def status_of(fd: int) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    found = os.fstat(fd)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def digest_of(source: FileSource) -> bytes:
    """Return a digest of the whole file.

    Raises:
        HostError, ConfigError: it cannot be read, or was truncated.
    """
    from hashlib import sha256  # takes 2.5 ms, which only those who prepare have time for

    digest = sha256()
    for offset in range(0, source.size, _CHUNK_BYTES):
        digest.update(source.read(offset, min(_CHUNK_BYTES, source.size - offset)))
    return digest.digest()
