# SPDX-License-Identifier: BSD-3-Clause
"""The registers of the memory hot-plug controller, as AML uses them."""

from __future__ import annotations

import pytest

from devices.memory_hotplug import MEMORY_HOTPLUG_BYTES, Dimm, MemoryHotplugController

GIB = 1 << 30
SELECT, FLAGS = 0, 20
ENABLED, INSERTING, REMOVING, EJECT = 1, 2, 4, 8


@pytest.fixture
def registers() -> MemoryHotplugController:
    registers = MemoryHotplugController()
    registers.plugged(Dimm(5 * GIB, 128 << 20))
    registers.plugged(Dimm(5 * GIB + (128 << 20), 3 * GIB, node=1))
    return registers


def test_selected_slot_is_shown(registers: MemoryHotplugController) -> None:
    registers.write(SELECT, 4, 1)
    found = [registers.read(offset, 4) for offset in range(0, FLAGS, 4)]
    assert found == [0x4800_0000, 1, 0xC000_0000, 0, 1]


def test_new_module_is_told_until_the_guest_has_seen_it(registers: MemoryHotplugController) -> None:
    assert registers.read(FLAGS, 1) == ENABLED | INSERTING
    registers.write(FLAGS, 1, INSERTING)
    assert registers.read(FLAGS, 1) == ENABLED
    registers.write(SELECT, 4, 1)
    assert registers.read(FLAGS, 4) == ENABLED | INSERTING


def test_module_cannot_be_ejected(registers: MemoryHotplugController) -> None:
    registers.write(FLAGS, 1, REMOVING | EJECT)
    assert registers.read(FLAGS, 1) & ENABLED
    assert len(registers.dimms) == 2


@pytest.mark.parametrize("slot", [2, 7, 8, 0xFFFF_FFFF])
def test_empty_slot_reads_as_zeros(registers: MemoryHotplugController, slot: int) -> None:
    registers.write(SELECT, 4, slot)
    assert {registers.read(offset, 4) for offset in range(0, MEMORY_HOTPLUG_BYTES, 4)} == {0}


def test_every_access_is_answered(registers: MemoryHotplugController) -> None:
    for size in (1, 2, 4, 8):
        for offset in range(MEMORY_HOTPLUG_BYTES - size + 1):
            for value in (0, 1, (1 << 8 * size) - 1):
                registers.write(offset, size, value)
                assert 0 <= registers.read(offset, size) < 1 << 8 * size
    assert len(registers.dimms) == 2


def test_reset_keeps_modules_which_are_not_new_any_more(registers: MemoryHotplugController) -> None:
    registers.write(SELECT, 4, 1)
    registers.reset()
    assert registers.read(FLAGS, 1) == ENABLED
    assert registers.read(0, 4) == 0x4000_0000


def test_eight_modules_fill_the_slots(registers: MemoryHotplugController) -> None:
    for number in range(6):
        assert not registers.is_full
        registers.plugged(Dimm(16 * GIB + number * GIB, GIB))
    assert registers.is_full
