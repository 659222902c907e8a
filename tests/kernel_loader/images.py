# SPDX-License-Identifier: BSD-3-Clause
"""Make small ELF files and bzImages, which are well-formed unless a test changes a field."""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack, pack_into

import lz4.block
import zstandard

from kernel_loader.elf import EHDR, PHDR, PT_LOAD, PT_NOTE
from kernel_loader.image import KernelImage
from kernel_loader.parse import parse_kernel
from kernel_loader.source import FileSource

MIB = 1 << 20
RAM_BYTES = 32 * MIB
TEXT_GPA = 0x100_0000
ENTRY = TEXT_GPA + 0x40
PVH_ENTRY = TEXT_GPA + 0x80


@dataclass
class Load:
    """One PT_LOAD header. A field that is ``None`` gets the value that the content needs."""

    gpa: int = TEXT_GPA
    content: bytes = b"\xf4" * 0x100
    size_bytes: int | None = None
    file_bytes: int | None = None
    offset: int | None = None


@dataclass
class Elf:
    """The fields of an ELF file, each of which a test can set to something wrong."""

    loads: list[Load] = field(default_factory=lambda: [Load()])
    notes: bytes = b""
    note_alignment: int = 4
    note_bytes: int | None = None
    entry: int = ENTRY
    elf_type: int = 2
    machine: int = 62
    elf_class: int = 2
    byte_order: int = 1
    phentsize: int = PHDR.size
    phnum: int | None = None
    phoff: int = 64
    extra_headers: list[bytes] = field(default_factory=list)

    def build(self) -> bytes:
        count = len(self.loads) + bool(self.notes) + len(self.extra_headers)
        at = 64 + count * PHDR.size
        headers, contents = list(self.extra_headers), b""
        for load in self.loads:
            size = len(load.content)
            headers.append(
                PHDR.pack(
                    PT_LOAD,
                    5,
                    at if load.offset is None else load.offset,
                    0xFFFF_FFFF_8000_0000 | load.gpa & 0x7FFF_FFFF,
                    load.gpa,
                    size if load.file_bytes is None else load.file_bytes,
                    size if load.size_bytes is None else load.size_bytes,
                    0x1000,
                )
            )
            contents += load.content
            at += size
        if self.notes:
            length = len(self.notes) if self.note_bytes is None else self.note_bytes
            headers.append(PHDR.pack(PT_NOTE, 4, at, 0, 0, length, length, self.note_alignment))
            contents += self.notes
        ident = b"\x7fELF" + bytes([self.elf_class, self.byte_order, 1]) + bytes(9)
        phnum = count if self.phnum is None else self.phnum
        head = ident + EHDR.pack(
            self.elf_type, self.machine, 1, self.entry, self.phoff, 0, 0, 64, self.phentsize,
            phnum, 0, 0, 0,
        )  # fmt: skip
        return head + b"".join(headers) + contents


def note(owner: bytes, kind: int, content: bytes, alignment: int = 4) -> bytes:
    def padded(data: bytes, start: int) -> bytes:
        return data + bytes(-(start + len(data)) % alignment)

    header = pack("<III", len(owner) + 1, len(content), kind)
    named = padded(header + owner + b"\0", 0)
    return padded(named + content, 0)


PVH_NOTE = note(b"Xen", 18, PVH_ENTRY.to_bytes(8, "little"))
LINUX_NOTE = note(b"Linux", 0x100, b"\0\0\0\0")


def _gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


def _with_size(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Do what the kernel build does: append the size in four bytes."""
    return lambda data: compress(data) + len(data).to_bytes(4, "little")


def _xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 0}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def _lz4(data: bytes) -> bytes:
    blocks = [
        lz4.block.compress(data[at : at + 8 * MIB], store_size=False)
        for at in range(0, len(data), 8 * MIB)
    ]
    return b"\x02\x21\x4c\x18" + b"".join(len(b).to_bytes(4, "little") + b for b in blocks)


def _zstd(data: bytes) -> bytes:
    # The kernel build runs zstd in a pipe, where it does not know the size.
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip,
    "xz": _with_size(_xz),
    "lzma": _with_size(lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0)),
    "bzip2": _with_size(lambda data: bz2.compress(data, 1)),
    "lz4": _with_size(_lz4),
    "zstd": _with_size(_zstd),
}


def bzimage(
    payload: bytes,
    *,
    version: int = 0x20F,
    xloadflags: int = 1,
    patches: dict[int, bytes] | None = None,
) -> bytes:
    """Return a bzImage around ``payload``; ``patches`` overwrite bytes at file offsets."""
    setup_sectors, payload_offset = 1, 0x240
    code = bytearray(payload_offset) + payload
    code += bytes(-len(code) % 16)
    head = bytearray((1 + setup_sectors) * 512)
    head[0x1EF] = 0xFF  # the sentinel, which must not be copied to the zero page
    head[0x1F1] = setup_sectors
    pack_into("<I", head, 0x1F4, len(code) // 16)
    pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x200:0x202] = b"\xeb\x6a"  # the header ends at 0x26c
    head[0x202:0x206] = b"HdrS"
    pack_into("<H", head, 0x206, version)
    head[0x211] = 1
    pack_into("<I", head, 0x214, 0x10_0000)
    pack_into("<II", head, 0x22C, 0x7FFF_FFFF, 0x20_0000)
    head[0x234] = 1
    pack_into("<H", head, 0x236, xloadflags)
    pack_into("<I", head, 0x238, 2047)
    pack_into("<II", head, 0x248, payload_offset, len(payload))
    pack_into("<QI", head, 0x258, TEXT_GPA, 0x80_0000)
    for offset, data in (patches or {}).items():
        head[offset : offset + len(data)] = data
    return bytes(head + code)


def write(directory: Path, content: bytes, name: str = "vmlinux") -> str:
    path = directory / name
    path.write_bytes(content)
    return str(path)


def open_kernel(path: str) -> KernelImage:
    """Read a kernel in this process; for an untrusted file a run has a process of its own."""
    source = FileSource.open("kernel", path)
    unpacked_fd = os.memfd_create("unpacked")
    try:
        parsed = parse_kernel(source, unpacked_fd)
        if parsed.unpacked_bytes:
            source.close()
            source = FileSource(source.what, os.dup(unpacked_fd), parsed.unpacked_bytes)
        return KernelImage(source, parsed)
    except BaseException:
        source.close()
        raise
    finally:
        os.close(unpacked_fd)
