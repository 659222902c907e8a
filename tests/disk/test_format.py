# SPDX-License-Identifier: BSD-3-Clause
"""Images that are not raw are warned of, once, and served as they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.spec import BlockSpec
from disk.format import foreign_format
from disk.image import open_image

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 * 1024
FOOTER = b"conectix" + bytes(504)

FORMATS = [
    pytest.param(b"QFI\xfb\0\0\0\3", "a qcow2 image", id="qcow2"),
    pytest.param(b"vhdxfile", "a VHDX image", id="vhdx"),
    pytest.param(FOOTER, "a VHD image", id="vhd"),
    pytest.param(b"KDMV\1\0\0\0", "a VMDK image", id="vmdk"),
    pytest.param(b"# Disk DescriptorFile\nversion=1\n", "the descriptor of a VMDK", id="vmdk-text"),
    pytest.param(bytes(0x40) + b"\x7f\x10\xda\xbe", "a VDI image", id="vdi"),
    pytest.param(b"\xfd7zXZ\0\0\4", "a file that xz compressed", id="xz"),
]
RAW = [
    pytest.param(bytes(SIZE), id="zeros"),
    pytest.param(b"\x5a" * SIZE, id="pattern"),
    pytest.param(b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa" + bytes(512), id="boot-sector"),
    pytest.param(bytes(1080) + b"\x53\xef" + bytes(SIZE - 1082), id="ext4"),
    pytest.param(bytes(512) + b"QFI\xfb" + bytes(508), id="mark-elsewhere"),
    pytest.param(b"QFI" + bytes(509), id="part-of-a-mark"),
]


def opened(path: Path, content: bytes) -> bytes:
    """Open an image and return what a guest would see of it."""
    path.write_bytes(content)
    fd = open_image(BlockSpec(str(path), option="--rwdisk"))
    os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize(("head", "name"), FORMATS)
def test_image_of_another_format_is_warned_of_and_stays_raw(
    tmp_path: Path, head: bytes, name: str, lines: list[str]
) -> None:
    path = tmp_path / "disk.img"
    content = head.ljust(SIZE, b"\0")
    assert opened(path, content) == content
    (line,) = lines
    assert line.startswith(f"--rwdisk {path}: looks like {name}")
    assert "used as a raw image" in line


@pytest.mark.parametrize("size", [512, 1024, SIZE, SIZE + 512])
def test_vhd_image_of_fixed_size_is_known_by_its_end(
    tmp_path: Path, size: int, lines: list[str]
) -> None:
    opened(tmp_path / "disk.vhd", bytes(size - 512) + FOOTER)
    assert len(lines) == 1
    assert "looks like a VHD image" in lines[0]


@pytest.mark.parametrize("content", RAW)
def test_raw_image_is_not_warned_of(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    opened(tmp_path / "disk.img", content)
    assert lines == []


@pytest.mark.parametrize("size", [4096, SIZE, SIZE + 512])
def test_direct_descriptor_is_read_as_it_must_be(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(size - 512) + FOOTER)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("no O_DIRECT on the file system of the temporary folder")
    looks_like = foreign_format(fd, size)
    os.close(fd)
    assert looks_like is not None
    assert looks_like.name == "a VHD image of fixed size"


def test_file_that_cannot_be_read_looks_like_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    looks_like = foreign_format(fd, SIZE)
    os.close(fd)
    assert looks_like is None
