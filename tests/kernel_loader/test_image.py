# SPDX-License-Identifier: BSD-3-Clause
"""Whole kernel files: how each kind starts, what is refused, and what reaches guest memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kernel_loader.image import KernelImage
from sys_util.errors import ConfigError, GuestAddressError, HostError, describe
from sys_util.guest_memory import GuestMemory
from tests.kernel_loader.images import (
    COMPRESSORS,
    ENTRY,
    LINUX_NOTE,
    MIB,
    PVH_ENTRY,
    PVH_NOTE,
    TEXT_GPA,
    Elf,
    Load,
    bzimage,
    open_kernel,
    write,
)

pytestmark = pytest.mark.usefixtures("steady_fds", "lines")

LOW_END = 0x10_0000
RAM = [(0, 0xA_0000), (LOW_END, 31 * MIB)]
LZO = b"\x89LZO\0\r\n\x1a\n" + bytes(100)


def opened(directory: Path, content: bytes) -> KernelImage:
    image = open_kernel(write(directory, content))
    image.close()
    return image


@pytest.mark.parametrize(
    ("elf", "protocol", "entry"),
    [
        pytest.param(Elf(), "linux64", ENTRY, id="no-note"),
        pytest.param(Elf(elf_type=3), "linux64", ENTRY, id="position-independent"),
        pytest.param(Elf(notes=LINUX_NOTE), "linux64", ENTRY, id="linux"),
        pytest.param(Elf(notes=LINUX_NOTE + PVH_NOTE), "linux64", ENTRY, id="linux-with-pvh"),
        pytest.param(Elf(notes=PVH_NOTE), "pvh", PVH_ENTRY, id="not-linux"),
        pytest.param(
            Elf(notes=LINUX_NOTE + PVH_NOTE, entry=PVH_ENTRY), "pvh", PVH_ENTRY, id="same-entry"
        ),
        pytest.param(
            Elf(notes=LINUX_NOTE + PVH_NOTE, entry=0xFFFF_FFFF_8100_0040),
            "pvh",
            PVH_ENTRY,
            id="virtual-entry",
        ),
    ],
)
def test_open_kernel_chooses_the_protocol(
    tmp_path: Path, elf: Elf, protocol: str, entry: int
) -> None:
    image = opened(tmp_path, elf.build())
    assert (image.protocol, image.entry) == (protocol, entry)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_open_kernel_unpacks_a_bzimage(tmp_path: Path, ram: GuestMemory, name: str) -> None:
    content = os.urandom(0x1000) + bytes(0x1000)
    inner = Elf(loads=[Load(content=content)], notes=LINUX_NOTE)
    image = open_kernel(write(tmp_path, bzimage(COMPRESSORS[name](inner.build()))))
    image.place(ram)
    image.close()
    image.close()
    assert image.kind == f"bzImage, {name}"
    assert (image.protocol, image.entry) == ("linux64", ENTRY)
    assert image.setup_header[0x11:0x15] == b"HdrS"
    assert ram.read(TEXT_GPA, 0x2000) == content


@pytest.mark.parametrize(
    ("content", "protocol", "entry"),
    [
        pytest.param(bzimage(LZO), "linux64", 0x20_0200, id="lzo"),
        pytest.param(bzimage(LZO, xloadflags=0), "linux32", 0x20_0000, id="32-bit"),
        pytest.param(
            bzimage(COMPRESSORS["gzip"](Elf().build()), xloadflags=0), "linux32", 0x20_0000,
            id="32-bit-gzip",
        ),
        pytest.param(
            bzimage(COMPRESSORS["gzip"](Elf(elf_class=1, machine=3).build()), version=0x20A),
            "linux32", 0x20_0000, id="32-bit-old",
        ),
        pytest.param(bzimage(LZO, version=0x207), "linux32", 0x20_0000, id="no-payload-fields"),
        pytest.param(
            bzimage(LZO, patches={0x230: (MIB << 4).to_bytes(4, "little")}),
            "linux64", 0x100_0200, id="alignment",
        ),
        pytest.param(
            bzimage(LZO, patches={0x234: b"\0", 0x258: (MIB * 4).to_bytes(8, "little")}),
            "linux64", 0x40_0200, id="not-relocatable",
        ),
    ],
)  # fmt: skip
def test_open_kernel_leaves_unpacking_to_the_guest(
    tmp_path: Path,
    ram: GuestMemory,
    lines: list[str],
    content: bytes,
    protocol: str,
    entry: int,
) -> None:
    image = open_kernel(write(tmp_path, content))
    image.check(RAM, LOW_END)
    image.place(ram)
    image.close()
    assert (image.protocol, image.entry) == (protocol, entry)
    load_gpa = entry & ~0xFFF
    assert ram.read(load_gpa, len(content) - 1024) == content[1024:]
    assert any("in the guest" in line for line in lines)


def test_in_guest_kernel_claims_the_memory_it_unpacks_into(tmp_path: Path) -> None:
    image = opened(tmp_path, bzimage(LZO))
    assert image.segments[0].end == TEXT_GPA + 0x80_0000


def test_open_kernel_old_64_bit_bzimage_without_xloadflags_is_unpacked(tmp_path: Path) -> None:
    packed = COMPRESSORS["gzip"](Elf().build())
    image = opened(tmp_path, bzimage(packed, version=0x20A, xloadflags=0))
    assert (image.protocol, image.entry) == ("linux64", ENTRY)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"#!/bin/sh\nexit 0\n", "a text that starts with '#!/bin/sh'", id="script"),
        pytest.param(b"\x00\x01\x02", "starts with the bytes 00 01 02", id="binary"),
        pytest.param(b"\n", "starts with the bytes 0a", id="newline"),
        pytest.param(bytes(0x38) + b"ARM\x64", "kernel for aarch64", id="arm64-image"),
        pytest.param(b"070701" + bytes(99), "an initramfs", id="cpio"),
        pytest.param(b"hsqs" + bytes(99), "a squashfs image", id="squashfs"),
        pytest.param(bytes(0x438) + b"\x53\xef", "an ext2/3/4 image", id="ext4"),
        pytest.param(b"\x1f\x8b\x08", "gzip-compressed data", id="gzip"),
        pytest.param(b"MZ" + bytes(99), "a PE program", id="pe"),
        pytest.param(b"\x7fELF", "truncated ELF header", id="elf-magic"),
        pytest.param(bzimage(LZO)[:0x210], "truncated bzImage, 0x210 bytes", id="bz-header"),
        pytest.param(bzimage(LZO)[:0x500], "truncated bzImage, the code at 0x400", id="bz-code"),
        pytest.param(
            bzimage(LZO, patches={0x248: b"\xff\xff\xff\xff"}),
            "truncated bzImage, the payload at 0x1000003ff",
            id="payload-offset",
        ),
        pytest.param(
            bzimage(LZO, patches={0x24C: bytes(4)}), "the payload at 0x640.0x0", id="no-payload"
        ),
        pytest.param(bzimage(LZO, version=0x203), "boot protocol 0x203 is older", id="old"),
        pytest.param(bzimage(LZO, patches={0x211: b"\0"}), "a zImage", id="zimage"),
        pytest.param(
            bzimage(LZO, patches={0x230: b"\x01\0\x20\0"}), "kernel alignment 0x200001", id="align"
        ),
        pytest.param(
            bzimage(COMPRESSORS["gzip"](b"no ELF at all" * 10)),
            r"\(gzip payload\): not an ELF file",
            id="payload-not-elf",
        ),
        pytest.param(
            bzimage(COMPRESSORS["xz"](Elf(elf_class=1).build())),
            r"\(xz payload\): a 32-bit ELF file",
            id="payload-32-bit",
        ),
        pytest.param(
            bzimage(b"\xfd7zXZ\0" + bytes(64) + b"\xff\0\0\0"), "corrupt xz payload", id="corrupt"
        ),
    ],
)
def test_open_kernel_refuses_and_names_the_file(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = write(tmp_path, content)
    open_fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=f"^kernel {path}.*{reason}"):
        open_kernel(path)
    assert len(os.listdir("/proc/self/fd")) == open_fds


def test_open_kernel_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        open_kernel(str(tmp_path / "absent"))
    assert describe(caught.value) == f"open kernel {tmp_path}/absent: No such file or directory"


def test_open_kernel_directory_and_pipe_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        open_kernel(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a regular file"):
        open_kernel(str(tmp_path / "pipe"))


def test_open_kernel_nul_in_the_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="NUL character in a file name"):
        open_kernel("vm\0linux")


@pytest.mark.parametrize(
    ("elf", "reason"),
    [
        pytest.param(
            Elf(loads=[Load(gpa=0x9_F000)], entry=0x9_F000),
            "segment 0x9f000.0x100 lies in the reserved area below 0x100000",
            id="low",
        ),
        pytest.param(
            Elf(loads=[Load(size_bytes=64 * MIB)]),
            r"segment 0x1000000.0x4000000 lies outside memory .*0x100000.0x1f00000",
            id="too-large",
        ),
        pytest.param(
            Elf(loads=[Load(), Load(gpa=0xD000_0000)]), "0xd0000000.0x100 lies outside", id="hole"
        ),
        pytest.param(
            Elf(loads=[Load(gpa=(1 << 64) - 0x100)]), "0xffffffffffffff00.* outside", id="top"
        ),
        pytest.param(Elf(entry=0x20_0000), "entry 0x200000 lies outside any segment", id="entry"),
        pytest.param(
            Elf(loads=[Load(size_bytes=0x1000)], entry=TEXT_GPA + 0x100),
            "entry 0x1000100 lies outside any segment",
            id="entry-in-bss",
        ),
    ],
)
def test_check_refuses_what_memory_cannot_hold(tmp_path: Path, elf: Elf, reason: str) -> None:
    image = opened(tmp_path, elf.build())
    with pytest.raises(ConfigError, match=f"^kernel .*vmlinux: .*{reason}"):
        image.check(RAM, LOW_END)


def test_check_entry_above_the_identity_map_is_refused(tmp_path: Path) -> None:
    gpa = 1 << 32
    image = opened(tmp_path, Elf(loads=[Load(gpa=gpa)], entry=gpa).build())
    with pytest.raises(ConfigError, match="entry 0x100000000 lies above 0x100000000"):
        image.check([*RAM, (gpa, MIB)], LOW_END)


def test_place_file_that_was_truncated_meanwhile_is_an_error_with_a_name(
    tmp_path: Path, ram: GuestMemory
) -> None:
    path = write(tmp_path, Elf().build())
    image = open_kernel(path)
    os.truncate(path, 0x90)
    with pytest.raises(ConfigError, match="ends at 0x90, 0xe8 bytes before it should"):
        image.place(ram)
    image.close()


def refuse_sendfile(*arguments: int) -> int:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_place_reads_where_sendfile_is_refused(
    tmp_path: Path, ram: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sendfile", refuse_sendfile)
    path = write(tmp_path, Elf().build())
    image = open_kernel(path)
    image.place(ram)
    assert ram.read(TEXT_GPA, 0x100) == b"\xf4" * 0x100
    os.truncate(path, 0x90)
    with pytest.raises(ConfigError, match="ends at 0x90, 0xe8 bytes before it should"):
        image.place(ram)
    image.close()


def test_place_goes_by_the_regions_of_guest_memory(tmp_path: Path) -> None:
    gpa = 1 << 32
    image = open_kernel(write(tmp_path, Elf(loads=[Load(gpa=gpa)], entry=gpa).build()))
    memory = GuestMemory.create([(0, MIB), (gpa, MIB)])
    image.place(memory)
    assert memory.read(gpa, 0x100) == b"\xf4" * 0x100
    memory.close()
    small = GuestMemory.create([(0, MIB)])
    with pytest.raises(GuestAddressError, match=r"no guest memory at 0x100000000"):
        image.place(small)
    small.close()
    image.close()
