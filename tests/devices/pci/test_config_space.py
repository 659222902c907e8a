# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space: masks, odd accesses, capabilities, hooks."""

from __future__ import annotations

import pytest

from devices.pci.config_space import ConfigSpace, PciIdentity


@pytest.fixture
def space() -> ConfigSpace:
    return ConfigSpace(PciIdentity(0x1AF4, 0x1042, 0x018000, 1, 0x1AF4, 0x1100))


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0x00, 4, 0x1042_1AF4),
        (0x02, 2, 0x1042),
        (0x01, 1, 0x1A),
        (0x08, 4, 0x0180_0001),
        (0x0B, 1, 0x01),
        (0x2C, 4, 0x1100_1AF4),
        (0x00, 8, 0x1042_1AF4),
        (0x01, 2, 0x421A),
        (0x0E, 1, 0x00),
    ],
)
def test_read_any_size_finds_the_identity(
    space: ConfigSpace, offset: int, size: int, expected: int
) -> None:
    assert space.read(offset, size) == expected


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0xFFC, 8, 0xFFFF_FFFF_0000_0000),
        (0xFFF, 4, 0xFFFF_FF00),
        (0xFFF, 1, 0),
        (0x1000, 4, 0xFFFF_FFFF),
        (0x2000, 1, 0xFF),
    ],
)
def test_access_past_the_end_reads_ones(
    space: ConfigSpace, offset: int, size: int, expected: int
) -> None:
    space.write(offset, size, (1 << 8 * size) - 1)
    assert space.read(offset, size) == expected


def test_write_changes_only_writable_bits(space: ConfigSpace) -> None:
    space.set(0x50, 4, 0x1234_5678, writable=0x00FF_0FF0)
    space.write(0x50, 4, 0xFFFF_FFFF)
    assert space.read(0x50, 4) == 0x12FF_5FF8
    space.write(0x4F, 4, 0)
    assert space.read(0x50, 4) == 0x1200_5008
    space.write(0x51, 1, 0xFF)
    assert space.read(0x50, 4) == 0x1200_5F08


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_write_everywhere_changes_nothing_but_the_interrupt_line(
    space: ConfigSpace, size: int
) -> None:
    before = [space.read(offset, 4) for offset in range(0, 4096, 4)]
    for offset in range(4097):
        space.write(offset, size, (1 << 8 * size) - 1)
    before[0x3C // 4] |= 0xFF
    assert [space.read(offset, 4) for offset in range(0, 4096, 4)] == before


def test_capabilities_form_a_chain(space: ConfigSpace) -> None:
    assert space.read(0x34, 1) == 0
    assert space.read(0x06, 2) & 0x10 == 0
    first = space.add_capability(0x09, bytes(14))
    second = space.add_capability(0x11, b"\x41\0" + bytes(7), b"\0\xc0")
    third = space.add_capability(0x05, b"")
    assert (first, second, third) == (0x40, 0x50, 0x5C)
    assert space.read(0x34, 1) == first
    assert [space.read(at, 2) for at in (first, second, third)] == [0x5009, 0x5C11, 0x0005]
    assert space.read(0x06, 2) & 0x10
    space.write(second, 4, 0xFFFF_FFFF)
    assert space.read(second, 4) == 0xC041_5C11


def test_add_capability_beyond_conventional_space_is_refused(space: ConfigSpace) -> None:
    space.add_capability(0x09, bytes(150))
    with pytest.raises(ValueError, match="capability 0x9 of 102 bytes at 0xd8"):
        space.add_capability(0x09, bytes(100))


@pytest.mark.parametrize(
    ("offset", "size", "called"),
    [(0x10, 4, 1), (0x0F, 1, 0), (0x0F, 2, 1), (0x13, 1, 1), (0x14, 4, 0), (0x0C, 8, 1)],
)
def test_hooks_run_for_overlapping_accesses(
    space: ConfigSpace, offset: int, size: int, called: int
) -> None:
    calls: list[str] = []
    space.on_write(0x10, 4, lambda: calls.append("write"))
    space.on_read(0x10, 4, lambda: calls.append("read"))
    space.write(offset, size, 0)
    space.read(offset, size)
    assert calls == ["write", "read"] * called
