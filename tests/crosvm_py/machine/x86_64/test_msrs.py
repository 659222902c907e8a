# SPDX-License-Identifier: BSD-3-Clause
"""Memory types by MTRR, and a KVM that refuses some of them."""

from __future__ import annotations

import pytest

from crosvm_py.machine.x86_64.layout import MMIO_HOLE_END, MMIO_HOLE_START
from crosvm_py.machine.x86_64.msrs import boot_msrs, set_boot_msrs, uncached_ranges


class FakeVcpu:
    index = 0

    def __init__(self, refused: int) -> None:
        self._refused = refused
        self.msrs: dict[int, int] = {}

    def set_msr(self, index: int, value: int) -> bool:
        if index == self._refused:
            return False
        self.msrs[index] = value
        return True


@pytest.mark.parametrize(
    ("start", "end", "ranges"),
    [
        pytest.param(0xD000_0000, 1 << 32, [(0xD000_0000, 1 << 28), (0xE000_0000, 1 << 29)]),
        pytest.param(0xC000_0000, 1 << 32, [(0xC000_0000, 1 << 30)]),
        pytest.param(0x1000, 0x4000, [(0x1000, 0x1000), (0x2000, 0x2000)]),
        pytest.param(0x8000, 0xB000, [(0x8000, 0x2000), (0xA000, 0x1000)]),
        pytest.param(0x1000, 0x1000, []),
    ],
)
def test_uncached_ranges(start: int, end: int, ranges: list[tuple[int, int]]) -> None:
    assert uncached_ranges(start, end) == ranges


@pytest.mark.parametrize(
    ("address", "uncached"),
    [
        pytest.param(0, False, id="low"),
        pytest.param(MMIO_HOLE_START - 1, False, id="below-hole"),
        pytest.param(MMIO_HOLE_START, True, id="hole"),
        pytest.param(MMIO_HOLE_END - 1, True, id="hole-end"),
        pytest.param(MMIO_HOLE_END, False, id="high"),
        pytest.param(MMIO_HOLE_START + (1 << 40), False, id="mask-covers-all-bits"),
    ],
)
def test_variable_ranges_cover_the_hole_only(address: int, uncached: bool) -> None:
    msrs = dict(boot_msrs(46))
    hits = [
        base
        for base in range(0x200, 0x210, 2)
        if base in msrs and (address ^ msrs[base]) & msrs[base + 1] & ~0xFFF == 0
    ]
    assert bool(hits) == uncached
    assert all(msrs[base] & 0xFF == 0 for base in hits)
    assert msrs[0x2FF] == 0x806


def test_refused_msr_does_not_stop_the_others() -> None:
    vcpu = FakeVcpu(refused=0x1A0)
    set_boot_msrs(vcpu, 40)
    assert vcpu.msrs.keys() == {index for index, _ in boot_msrs(40)} - {0x1A0}
