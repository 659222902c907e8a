# SPDX-License-Identifier: BSD-3-Clause
"""The ELF core file of a guest: its headers, and where guest memory is in it (elf(5))."""

from __future__ import annotations

from struct import Struct

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_EHDR: Final = Struct("<4sBBBB8xHHIQQQIHHHHHH")
_PHDR: Final = Struct("<IIQQQQQQ")
_SHDR: Final = Struct("<IIQQQQIIQQ")
_ELFCLASS64: Final = 2
_ELFDATA2LSB: Final = 1
_EV_CURRENT: Final = 1
_ET_CORE: Final = 4
_EM_X86_64: Final = 62
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_READ_WRITE_EXECUTE: Final = 7
# The number of segments that means: it is in the first section header.
_PN_XNUM: Final = 0xFFFF
_ALIGNMENT: Final = 4096


class CoreFile(NamedTuple):
    """``header`` is the start of the file; ``offsets`` has the place of each part of memory."""

    header: bytes
    offsets: tuple[int, ...]
    size_bytes: int


def lay_out(memory: Sequence[tuple[int, int]], notes: bytes) -> CoreFile:
    """Lay out a core file with some ``notes`` and parts of ``memory``: (gpa, size_bytes)."""
    count = len(memory) + 1
    many = count >= _PN_XNUM
    sections_at = _EHDR.size + count * _PHDR.size
    notes_at = sections_at + (_SHDR.size if many else 0)
    at = _aligned(notes_at + len(notes))
    segments = [_PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 4)]
    offsets = []
    for gpa, size_bytes in memory:
        offsets.append(at)
        sizes = (size_bytes, size_bytes, _ALIGNMENT)
        segments.append(_PHDR.pack(_PT_LOAD, _READ_WRITE_EXECUTE, at, gpa, gpa, *sizes))
        at += size_bytes
    header = _EHDR.pack(
        *(b"\x7fELF", _ELFCLASS64, _ELFDATA2LSB, _EV_CURRENT, 0),
        *(_ET_CORE, _EM_X86_64, _EV_CURRENT, 0, _EHDR.size, sections_at if many else 0, 0),
        *(_EHDR.size, _PHDR.size, _PN_XNUM if many else count),
        *(_SHDR.size, int(many), 0),
    )
    section = _SHDR.pack(*(0,) * 7, count, 0, 0) if many else b""
    return CoreFile(b"".join((header, *segments, section, notes)), tuple(offsets), at)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
