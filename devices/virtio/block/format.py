# SPDX-License-Identifier: BSD-3-Clause
"""Recognize images of other formats, which are served as the raw bytes that they are.

A guest can write any of these marks to its own raw disk, so they decide nothing: the user gets a
warning, and an image is never opened as what it looks like.
"""

from __future__ import annotations

import mmap
import os

from sys_util.typing import Final, NamedTuple, Self

_BLOCK_BYTES: Final = 4096  # what O_DIRECT can read anywhere


class Format(NamedTuple):
    """What an image looks like, and what the user can make of it."""

    name: str
    remedy: str = "qemu-img convert -O raw makes a raw one of it"

    @classmethod
    def compressed(cls, program: str) -> Self:
        """Return the format of a file that ``program`` has compressed."""
        return cls(f"a file that {program} compressed", f"{program} -d unpacks it")


# Where a format has its mark, the mark, and what it is called.
_MARKS: Final[tuple[tuple[int, bytes, Format], ...]] = (
    (0, b"QFI\xfb", Format("a qcow2 image")),
    (0, b"QED\0", Format("a QED image")),
    (0, b"vhdxfile", Format("a VHDX image")),
    (0, b"conectix", Format("a VHD image")),
    (0, b"KDMV", Format("a VMDK image")),
    (0, b"COWD", Format("a VMDK image")),
    (0, b"# Disk DescriptorFile", Format("the descriptor of a VMDK image")),
    (0x40, b"\x7f\x10\xda\xbe", Format("a VDI image")),
    (0, b"\x1f\x8b\x08", Format.compressed("gzip")),
    (0, b"\xfd7zXZ\0", Format.compressed("xz")),
    (0, b"\x28\xb5\x2f\xfd", Format.compressed("zstd")),
    (0, b"BZh", Format.compressed("bzip2")),
)
# A VHD image of fixed size is raw, but for this mark in its last sector.
_FOOTER: Final = b"conectix"
_FOOTER_BYTES: Final = 512


def foreign_format(fd: int, size_bytes: int) -> Format | None:
    """Return what an image looks like that is not raw, or None.

    The file has ``size_bytes``; one that cannot be read looks like nothing.
    """
    head = _read(fd, 0)
    for offset, mark, looks_like in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return looks_like
    footer_at = size_bytes - _FOOTER_BYTES
    block_at = max(footer_at, 0) & ~(_BLOCK_BYTES - 1)
    footer = _read(fd, block_at)[max(footer_at, 0) - block_at :]
    return Format("a VHD image of fixed size") if footer.startswith(_FOOTER) else None


def _read(fd: int, offset: int) -> bytes:
    """Return up to a block of the file, through memory that is aligned as O_DIRECT wants it."""
    with mmap.mmap(-1, _BLOCK_BYTES) as block:
        try:
            count = os.preadv(fd, [block], offset)
        except OSError:
            return b""
        return block[:count]
