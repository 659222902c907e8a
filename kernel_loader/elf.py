# SPDX-License-Identifier: BSD-3-Clause
"""ELF64 kernels for x86-64: program headers and the notes that tell how to start them.

We read only what is needed to load and start a kernel: the file header, PT_LOAD and PT_NOTE, but
no sections, which a stripped kernel lacks. Addresses are physical (``p_paddr``), as the kernel
build sets them. We apply no relocations.
"""

from __future__ import annotations

from itertools import pairwise
from struct import Struct

from kernel_loader.image import MAX_SEGMENTS, Segment
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kernel_loader.source import Source

log = get_logger("kernel_loader")

ELF_MAGIC: Final = b"\x7fELF"
ELFCLASS32: Final = 1
ELFCLASS64: Final = 2
ELFDATA2LSB: Final = 1
ET_EXEC: Final = 2
ET_DYN: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PT_INTERP: Final = 3
PT_NOTE: Final = 4
PN_XNUM: Final = 0xFFFF

# Elf64_Ehdr after e_ident: e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags,
# e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
EHDR: Final = Struct("<HHIQQQIHHHHHH")
IDENT_BYTES: Final = 16
# Elf64_Phdr: p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
PHDR: Final = Struct("<IIQQQQQQ")
NOTE: Final = Struct("<III")

MAX_PROGRAM_HEADERS: Final = MAX_SEGMENTS
# Notes are read into memory, so their size has a limit. Those of Linux take some 500 bytes.
MAX_NOTE_BYTES: Final = 1 << 20

# Xen's note types (xen/include/public/elfnote.h).
XEN_ELFNOTE_GUEST_OS: Final = 6
XEN_ELFNOTE_PHYS32_ENTRY: Final = 18

_TYPES: Final = {0: "no type", 1: "a relocatable object", ET_EXEC: "", ET_DYN: "", 4: "a core file"}
_MACHINES: Final = {
    3: "i386",
    8: "mips",
    20: "powerpc",
    21: "powerpc64",
    22: "s390",
    40: "arm",
    43: "sparc64",
    183: "aarch64",
    243: "riscv",
    258: "loongarch",
}


class ElfKernel(NamedTuple):
    """What the headers of a kernel say. Segments are in ascending order and do not overlap."""

    segments: tuple[Segment, ...]
    entry: int
    pvh_entry: int | None
    is_linux: bool


_Note: TypeAlias = "tuple[bytes, int, bytes]"  # owner, type, content


class _Notes(NamedTuple):
    pvh_entry: int | None
    is_linux: bool


def is_elf(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` claims to be an ELF file."""
    return head[:4] == ELF_MAGIC


def parse_elf(source: Source) -> ElfKernel:
    """Read and check the headers of an ELF64 kernel.

    Raises:
        ConfigError: the file is no ELF64 for x86-64, or its headers contradict themselves.
    """
    what = source.what
    if source.size < IDENT_BYTES + EHDR.size:
        raise ConfigError(f"{what}: truncated ELF header, {source.size:#x} bytes")
    ident = source.read(0, IDENT_BYTES)
    fields = EHDR.unpack(source.read(IDENT_BYTES, EHDR.size))
    _check_identity(what, ident, elf_type=fields[0], machine=fields[1])
    headers = _program_headers(source, fields[4], fields[8], fields[9])

    notes = _read_notes(source, headers)
    if notes.pvh_entry is None and any(header[0] == PT_INTERP for header in headers):
        raise ConfigError(f"{what}: a program that needs an interpreter, not a kernel")
    segments = _load_segments(source, headers)
    return ElfKernel(segments, fields[3], notes.pvh_entry, notes.is_linux)


def _check_identity(what: str, ident: bytes, elf_type: int, machine: int) -> None:
    if ident[:4] != ELF_MAGIC:
        raise ConfigError(f"{what}: not an ELF file")
    if ident[5] != ELFDATA2LSB:
        raise ConfigError(f"{what}: a big-endian ELF file, expected x86-64")
    if machine != EM_X86_64:
        name = _MACHINES.get(machine, f"machine {machine:#x}")
        bits = "32-bit " if ident[4] == ELFCLASS32 else ""
        raise ConfigError(f"{what}: a {bits}kernel for {name}, expected 64-bit x86-64")
    if ident[4] != ELFCLASS64:
        kind = "32-bit" if ident[4] == ELFCLASS32 else f"class {ident[4]}"
        raise ConfigError(f"{what}: a {kind} ELF file, expected 64-bit")
    if elf_type not in (ET_EXEC, ET_DYN):
        kind = _TYPES.get(elf_type, f"type {elf_type:#x}")
        raise ConfigError(f"{what}: an ELF file that is {kind}, expected an executable")


def _program_headers(
    source: Source, offset: int, entry_bytes: int, count: int
) -> list[tuple[int, ...]]:
    what = source.what
    if count == 0:
        raise ConfigError(f"{what}: no program headers, nothing to load")
    if count > MAX_PROGRAM_HEADERS:
        raise ConfigError(
            f"{what}: {count:#x} program headers, at most {MAX_PROGRAM_HEADERS:#x} are accepted"
        )
    if entry_bytes != PHDR.size:
        raise ConfigError(f"{what}: program headers of {entry_bytes:#x} bytes, not {PHDR.size:#x}")
    if offset + count * PHDR.size > source.size:
        raise ConfigError(
            f"{what}: program headers at {offset:#x}+{count * PHDR.size:#x} lie outside "
            f"the file of {source.size:#x} bytes"
        )
    return list(PHDR.iter_unpack(source.read(offset, count * PHDR.size)))


def _load_segments(source: Source, headers: list[tuple[int, ...]]) -> tuple[Segment, ...]:
    what = source.what
    segments: list[Segment] = []
    for index, (kind, _, offset, _, gpa, file_bytes, size_bytes, _) in enumerate(headers):
        if kind != PT_LOAD or size_bytes == file_bytes == 0:
            continue
        if file_bytes > size_bytes:
            raise ConfigError(
                f"{what}: segment {index} has {file_bytes:#x} bytes in the file "
                f"but only {size_bytes:#x} in memory"
            )
        if offset + file_bytes > source.size:
            raise ConfigError(
                f"{what}: truncated, segment {index} needs the file's bytes "
                f"{offset:#x}+{file_bytes:#x} of {source.size:#x}"
            )
        if gpa + size_bytes > 1 << 64:
            raise ConfigError(f"{what}: segment {index} at {gpa:#x}+{size_bytes:#x} wraps around")
        segments.append(Segment(gpa, size_bytes, offset, file_bytes))
    if not segments:
        raise ConfigError(f"{what}: no loadable segment")
    segments.sort()
    for low, high in pairwise(segments):
        if low.end > high.gpa:
            raise ConfigError(
                f"{what}: segments overlap, {low.gpa:#x}+{low.size_bytes:#x} "
                f"and {high.gpa:#x}+{high.size_bytes:#x}"
            )
    return tuple(segments)


def _read_notes(source: Source, headers: list[tuple[int, ...]]) -> _Notes:
    """Look for the PVH entry, and for a sign that this is a Linux kernel.

    Since 4.19 Linux has notes with the owner "Linux" (include/linux/build-salt.h). With Xen support
    it also names itself in XEN_ELFNOTE_GUEST_OS. A note that makes no sense is ignored with a
    warning: the kernel may start without it, and if it cannot, its entry is refused later.
    """
    pvh_entry: int | None = None
    is_linux = False
    wrong_bytes: int | None = None
    for owner, kind, content in _iterate_notes(source, headers):
        if owner == b"Linux":
            is_linux = True
        elif owner == b"Xen" and kind == XEN_ELFNOTE_GUEST_OS:
            is_linux |= content.rstrip(b"\0") == b"linux"
        elif owner == b"Xen" and kind == XEN_ELFNOTE_PHYS32_ENTRY and pvh_entry is None:
            # An address of the kernel's word size: Linux stores 8 bytes, other kernels 4.
            if len(content) in (4, 8):
                pvh_entry = int.from_bytes(content, "little")
            else:
                wrong_bytes = len(content)
    if wrong_bytes is not None:
        log.warning("%s: ignored a PVH note of %#x bytes, not 4 or 8", source.what, wrong_bytes)
    return _Notes(pvh_entry, is_linux)


def _iterate_notes(source: Source, headers: list[tuple[int, ...]]) -> Iterator[_Note]:
    total_bytes = 0
    for index, (kind, _, offset, _, _, file_bytes, _, alignment) in enumerate(headers):
        if kind != PT_NOTE:
            continue
        total_bytes += file_bytes
        if offset + file_bytes > source.size or total_bytes > MAX_NOTE_BYTES:
            log.warning(
                "%s: ignored the notes of segment %d at %#x+%#x: "
                "the file has %#x bytes, and notes may have %#x",
                *(source.what, index, offset, file_bytes, source.size, MAX_NOTE_BYTES),
            )
            return
        notes, whole = _split_notes(source.read(offset, file_bytes), alignment)
        if not whole:
            log.warning("%s: ignored a note over the end of segment %d", source.what, index)
        yield from notes


def _split_notes(data: bytes, alignment: int) -> tuple[list[_Note], bool]:
    """Return the notes of a segment, and whether the last one ends within the segment.

    Notes should be padded to 8 bytes if the alignment of the segment is 8, otherwise to 4. But a
    linker may put a property note of binutils, which is aligned to 8, into one segment with notes
    that are padded to 4. Therefore we try both and use all notes that we find: the wrong padding
    yields nonsense, but not a note with an owner and a type that we look for.
    """
    likely, other = (8, 4) if alignment == 8 else (4, 8)
    notes, whole = _walk_notes(data, likely)
    others, others_whole = _walk_notes(data, other)
    return list(dict.fromkeys((*notes, *others))), whole or others_whole


def _walk_notes(data: bytes, padding: int) -> tuple[list[_Note], bool]:
    """Return the notes before the first that exceeds ``data``, and whether no note exceeds it."""
    mask = padding - 1
    notes: list[_Note] = []
    at = 0
    while len(data) - at >= NOTE.size:
        name_bytes, content_bytes, kind = NOTE.unpack_from(data, at)
        if name_bytes == 0 and at % 8:
            at += 4  # every note has an owner: this is a gap before a note that is aligned to 8
            continue
        name_at = at + NOTE.size
        content_at = (name_at + name_bytes + mask) & ~mask
        content_end = content_at + content_bytes
        if content_end > len(data):
            return notes, False
        owner = data[name_at : name_at + name_bytes].rstrip(b"\0")
        notes.append((owner, kind, data[content_at:content_end]))
        at = (content_end + mask) & ~mask
    return notes, True
