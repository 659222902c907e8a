# SPDX-License-Identifier: BSD-3-Clause
"""Recognize images of other formats, to warn the user; they are served as raw bytes all the same.

A guest can write any of these marks to its own raw disk. If an image were opened as what it looks
like, the guest could make the host read other files.
"""

from __future__ import annotations

import mmap
import os

from sys_util.typing import Final, NamedTuple, Self

_BLOCK_BYTES: Final = 4096  # what O_DIRECT can read anywhere


class Format(NamedTuple):
    """What an image looks like, and what the user can do about it."""

    name: str
    remedy: str = "qemu-img convert -O raw makes a raw one of it"

    @classmethod
    def compressed(cls, program: str) -> Self:
        """Return the format of a file that ``program`` has compressed."""
        return cls(f"a file that {program} compressed", f"{program} -d unpacks it")


# The offset of a format's mark, the mark, and the format.
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
# A VHD image of fixed size is a raw image with this mark in one more sector at the end.
_FOOTER: Final = b"conectix"
_FOOTER_BYTES: Final = 512


def foreign_format(fd: int, size_bytes: int) -> Format | None:
    """Return the format that the image of ``size_bytes`` looks like, or None.

    None also stands for an image that cannot be read.
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
    """Return up to a block of the file, read into memory that is aligned for O_DIRECT."""
    with mmap.mmap(-1, _BLOCK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        try:
            count = os.preadv(fd, [block], offset)
        except OSError:
            return b""
        return block[:count]
