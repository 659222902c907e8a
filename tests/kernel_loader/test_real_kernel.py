# SPDX-License-Identifier: BSD-3-Clause
"""Debian's kernels, where the guest scripts have already fetched or built one."""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from

import pytest

from kernel_loader.elf import PHDR, PT_NOTE, ElfKernel, parse_elf
from kernel_loader.source import FileSource
from tests.kernel_loader.images import open_kernel

GUESTS = Path(__file__).parents[2] / ".cache" / "guests"
KERNELS = sorted((*GUESTS.glob("*/bzImage"), *GUESTS.glob("*/vmlinux")))
VMLINUX = [path for path in KERNELS if path.name == "vmlinux"]
NAMES = [f"{path.parent.name.partition('-')[0]}-{path.name}" for path in KERNELS]


@pytest.mark.slow
@pytest.mark.skipif(not KERNELS, reason=f"no kernel in {GUESTS}")
@pytest.mark.parametrize("path", KERNELS, ids=NAMES)
def test_open_kernel_real_kernel_starts_in_64_bit_mode(path: Path) -> None:
    image = open_kernel(str(path))
    image.check([(0, 0xA_0000), (0x10_0000, 0x1000_0000)], 0x10_0000)
    image.close()
    assert image.protocol == "linux64"
    assert image.segments[0].gpa >= 0x10_0000


@pytest.mark.slow
@pytest.mark.skipif(not VMLINUX, reason=f"no vmlinux in {GUESTS}")
def test_open_kernel_real_kernel_whose_notes_claim_8_bytes_keeps_its_entries(
    tmp_path: Path,
) -> None:
    content = bytearray(VMLINUX[0].read_bytes())
    (table,), (count,) = unpack_from("<Q", content, 32), unpack_from("<H", content, 56)
    for at in range(table, table + count * PHDR.size, PHDR.size):
        kind, *fields, _alignment = PHDR.unpack_from(content, at)
        if kind == PT_NOTE:
            PHDR.pack_into(content, at, kind, *fields, 8)
    (tmp_path / "vmlinux").write_bytes(content)
    first, second = (_parse(path) for path in (VMLINUX[0], tmp_path / "vmlinux"))
    assert first.pvh_entry is not None
    assert second == first


def _parse(path: Path) -> ElfKernel:
    source = FileSource.open("kernel", str(path))
    try:
        return parse_elf(source)
    finally:
        source.close()
