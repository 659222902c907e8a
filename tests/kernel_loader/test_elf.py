# SPDX-License-Identifier: BSD-3-Clause
"""ELF headers: what is read from a good file, and why a bad one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_loader.elf import PHDR, parse_elf
from kernel_loader.source import FileSource
from sys_util.errors import ConfigError
from tests.kernel_loader.images import (
    ENTRY,
    LINUX_NOTE,
    PVH_ENTRY,
    PVH_NOTE,
    TEXT_GPA,
    Elf,
    Load,
    note,
    write,
)

INTERP = PHDR.pack(3, 4, 0, 0, 0, 4, 4, 1)


def source_of(directory: Path, content: bytes) -> FileSource:
    return FileSource.open("kernel", write(directory, content))


def test_parse_elf_returns_segments_in_ascending_order(tmp_path: Path) -> None:
    high = Load(gpa=TEXT_GPA + 0x20_0000, content=b"b" * 0x30, size_bytes=0x5000)
    source = source_of(tmp_path, Elf(loads=[high, Load()]).build())
    elf = parse_elf(source)
    source.close()
    assert elf.entry == ENTRY
    assert [segment[:2] for segment in elf.segments] == [
        (TEXT_GPA, 0x100),
        (TEXT_GPA + 0x20_0000, 0x5000),
    ]
    assert elf.segments[1].file_bytes == 0x30
    assert elf.pvh_entry is None


@pytest.mark.parametrize("alignment", [4, 8])
def test_parse_elf_finds_the_pvh_entry_behind_other_notes(tmp_path: Path, alignment: int) -> None:
    notes = note(b"GNU", 5, b"12345", alignment)
    notes += note(b"Xen", 18, PVH_ENTRY.to_bytes(4, "little"), alignment)
    source = source_of(tmp_path, Elf(notes=notes, note_alignment=alignment).build())
    elf = parse_elf(source)
    source.close()
    assert elf.pvh_entry == PVH_ENTRY
    assert not elf.is_linux


# What binutils adds (-mx86-used-note=yes): aligned to 8, and as long.
PROPERTY_NOTE = note(b"GNU", 5, bytes(range(32)), 8)
XEN_ENTRY = PVH_ENTRY.to_bytes(4, "little")
XEN_NOTE = note(b"Xen", 18, XEN_ENTRY)


@pytest.mark.parametrize("alignment", [0, 1, 4, 8, 16])
@pytest.mark.parametrize(
    "notes",
    [
        pytest.param(PROPERTY_NOTE + LINUX_NOTE + PVH_NOTE, id="property-first"),
        pytest.param(LINUX_NOTE + PVH_NOTE + PROPERTY_NOTE, id="property-last"),
        pytest.param(XEN_NOTE + LINUX_NOTE + bytes(4) + PROPERTY_NOTE, id="gap-before-property"),
        pytest.param(XEN_NOTE + bytes(4) + PROPERTY_NOTE + LINUX_NOTE, id="property-between"),
        pytest.param(note(b"Linux", 1, b"1234", 8) + note(b"Xen", 18, XEN_ENTRY, 8), id="all-8"),
        pytest.param(note(b"Long Name", 9, b"12345") + LINUX_NOTE + XEN_NOTE, id="all-4"),
    ],
)
def test_parse_elf_reads_notes_of_either_padding(
    tmp_path: Path, notes: bytes, alignment: int, lines: list[str]
) -> None:
    source = source_of(tmp_path, Elf(notes=notes, note_alignment=alignment).build())
    elf = parse_elf(source)
    source.close()
    assert elf.pvh_entry == PVH_ENTRY
    assert elf.is_linux
    assert lines == []


@pytest.mark.parametrize(
    ("elf", "warning"),
    [
        pytest.param(Elf(notes=PVH_NOTE[:-1]), "over the end of segment 1", id="cut"),
        pytest.param(Elf(notes=b"\xff" * 12), "over the end of segment 1", id="sizes"),
        pytest.param(
            Elf(notes=b"\xff" * 12, note_alignment=8),
            "over the end of segment 1",
            id="sizes-8",
        ),
        pytest.param(
            Elf(notes=PVH_NOTE, note_bytes=1 << 40), "the notes of segment 1 at", id="outside"
        ),
        pytest.param(Elf(notes=bytes(1 << 20) + PVH_NOTE), "notes may have 0x100000", id="large"),
        pytest.param(Elf(notes=note(b"Xen", 18, b"12")), "a PVH note of 0x2 bytes", id="pvh-size"),
        pytest.param(Elf(notes=bytes(64)), None, id="zeros"),
        pytest.param(Elf(notes=b"\0" * 11), None, id="shorter-than-a-note"),
    ],
)
def test_parse_elf_ignores_notes_that_make_no_sense(
    tmp_path: Path, elf: Elf, warning: str | None, lines: list[str]
) -> None:
    source = source_of(tmp_path, elf.build())
    parsed = parse_elf(source)
    source.close()
    assert (parsed.entry, parsed.pvh_entry) == (ENTRY, None)
    assert len(lines) == (warning is not None)
    assert not warning or warning in lines[0]


def test_parse_elf_takes_the_first_of_two_pvh_entries(tmp_path: Path) -> None:
    second = note(b"Xen", 18, ENTRY.to_bytes(8, "little"))
    source = source_of(tmp_path, Elf(notes=PVH_NOTE + second).build())
    elf = parse_elf(source)
    source.close()
    assert elf.pvh_entry == PVH_ENTRY


@pytest.mark.parametrize(
    "notes",
    [
        pytest.param(LINUX_NOTE, id="build-salt"),
        pytest.param(note(b"Xen", 6, b"linux\0"), id="xen-guest-os"),
    ],
)
def test_parse_elf_recognizes_linux(tmp_path: Path, notes: bytes) -> None:
    source = source_of(tmp_path, Elf(notes=notes).build())
    elf = parse_elf(source)
    source.close()
    assert elf.is_linux


def test_parse_elf_accepts_an_interpreter_beside_a_pvh_note(tmp_path: Path) -> None:
    # FreeBSD's kernel has both.
    source = source_of(tmp_path, Elf(notes=PVH_NOTE, extra_headers=[INTERP]).build())
    elf = parse_elf(source)
    source.close()
    assert elf.pvh_entry == PVH_ENTRY


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(Elf().build()[:40], "truncated ELF header, 0x28 bytes", id="header"),
        pytest.param(Elf().build()[:-1], "truncated, segment 0 needs.*0x78.0x100", id="truncated"),
        pytest.param(Elf(elf_class=1, machine=3).build(), "32-bit kernel for i386", id="i386"),
        pytest.param(Elf(elf_class=1).build(), "a 32-bit ELF file, expected 64-bit", id="x32"),
        pytest.param(Elf(elf_class=7).build(), "class 7", id="class"),
        pytest.param(Elf(machine=183).build(), "for aarch64, expected 64-bit x86-64", id="arm64"),
        pytest.param(Elf(machine=0x1234).build(), "machine 0x1234", id="machine"),
        pytest.param(Elf(byte_order=2).build(), "big-endian", id="big-endian"),
        pytest.param(Elf(elf_type=1).build(), "relocatable object", id="module"),
        pytest.param(Elf(elf_type=4).build(), "core file", id="core"),
        pytest.param(Elf(elf_type=0xFE01).build(), "type 0xfe01", id="type"),
        pytest.param(Elf(phnum=0).build(), "no program headers", id="no-headers"),
        pytest.param(Elf(phnum=0xFFFF).build(), "0xffff program headers", id="many-headers"),
        pytest.param(Elf(phnum=200).build(), "program headers at 0x40.*outside", id="phnum"),
        pytest.param(Elf(phoff=1 << 63).build(), "program headers at 0x8000", id="phoff"),
        pytest.param(Elf(phentsize=32).build(), "program headers of 0x20 bytes", id="phentsize"),
        pytest.param(Elf(loads=[]).build(), "no program headers", id="nothing"),
        pytest.param(Elf(loads=[], notes=LINUX_NOTE).build(), "no loadable segment", id="notes"),
        pytest.param(Elf(loads=[Load(content=b"")]).build(), "no loadable", id="empty-segment"),
        pytest.param(
            Elf(loads=[Load(size_bytes=0x80)]).build(),
            "0x100 bytes in the file but only 0x80 in memory",
            id="filesz",
        ),
        pytest.param(Elf(loads=[Load(offset=1 << 63)]).build(), "truncated", id="offset"),
        pytest.param(Elf(loads=[Load(file_bytes=1 << 62, size_bytes=1 << 62)]).build(),
                     "truncated", id="file-bytes"),
        pytest.param(Elf(loads=[Load(gpa=(1 << 64) - 0x80)]).build(), "wraps around", id="wrap"),
        pytest.param(
            Elf(loads=[Load(), Load(gpa=TEXT_GPA + 0xFF)]).build(),
            "segments overlap, 0x1000000.0x100 and 0x10000ff.0x100",
            id="overlap",
        ),
        pytest.param(
            Elf(loads=[Load(size_bytes=0x2000), Load(gpa=TEXT_GPA + 0x1000)]).build(),
            "segments overlap",
            id="overlap-bss",
        ),
        pytest.param(Elf(extra_headers=[INTERP]).build(), "interpreter", id="user-program"),
    ],
)  # fmt: skip
def test_parse_elf_refuses_and_names_the_file(tmp_path: Path, content: bytes, reason: str) -> None:
    source = source_of(tmp_path, content)
    with pytest.raises(ConfigError, match=f"^kernel .*vmlinux: .*{reason}"):
        parse_elf(source)
    source.close()
