# SPDX-License-Identifier: BSD-3-Clause
"""The registers of the PCI hot-plug controller and of the event device, as AML uses them."""

from __future__ import annotations

import pytest

from devices.ged import GED_PCI, EventDevice
from devices.pci.hotplug import PciHotplugController

UP, DOWN, EJECT, SEGMENT = 0, 4, 8, 12


class Slots:
    """A controller, and the slots that the guest has ejected."""

    def __init__(self) -> None:
        self.ejected: list[int] = []
        self.registers = PciHotplugController(self.ejected.append)


@pytest.fixture
def slots() -> Slots:
    return Slots()


def test_up_and_down_are_told_once(slots: Slots) -> None:
    slots.registers.plugged(6)
    slots.registers.plugged(31)
    slots.registers.ask_to_eject(3)
    assert slots.registers.read(UP, 4) == 1 << 6 | 1 << 31
    assert slots.registers.read(DOWN, 4) == 1 << 3
    assert (slots.registers.read(UP, 4), slots.registers.read(DOWN, 4)) == (0, 0)


def test_emptied_slot_is_told_no_more(slots: Slots) -> None:
    slots.registers.plugged(6)
    slots.registers.ask_to_eject(6)
    slots.registers.emptied(6)
    assert (slots.registers.read(UP, 4), slots.registers.read(DOWN, 4)) == (0, 0)


def test_plugged_slot_is_not_to_be_ejected_for_its_predecessor(slots: Slots) -> None:
    slots.registers.ask_to_eject(6)
    slots.registers.plugged(6)
    assert slots.registers.read(DOWN, 4) == 0


def test_eject_is_told_for_each_bit(slots: Slots) -> None:
    slots.registers.write(EJECT, 4, 1 << 1 | 1 << 30)
    assert slots.ejected == [1, 30]
    assert slots.registers.read(EJECT, 4) == 0


def test_other_segments_are_empty(slots: Slots) -> None:
    slots.registers.plugged(6)
    slots.registers.write(SEGMENT, 4, 1)
    assert slots.registers.read(SEGMENT, 4) == 1
    assert slots.registers.read(UP, 4) == 0
    slots.registers.write(EJECT, 4, 1 << 6)
    assert slots.ejected == []
    slots.registers.write(SEGMENT, 4, 0)
    assert slots.registers.read(UP, 4) == 1 << 6


def test_each_segment_has_registers_of_its_own() -> None:
    ejected: list[int] = []
    registers = PciHotplugController(ejected.append, segments=16)
    registers.plugged(15 * 32)
    registers.ask_to_eject(1 * 32 + 31)
    found = []
    for segment in range(17):
        registers.write(SEGMENT, 4, segment)
        found.append((registers.read(UP, 4), registers.read(DOWN, 4)))
        registers.write(EJECT, 4, 1 << 2)
    assert found[15] == (1, 0)
    assert found[1] == (0, 1 << 31)
    assert found.count((0, 0)) == 15
    assert ejected == [segment * 32 + 2 for segment in range(16)]


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (0, 8), (2, 4), (13, 1)])
def test_other_accesses_find_nothing(slots: Slots, offset: int, size: int) -> None:
    slots.registers.plugged(6)
    assert slots.registers.read(offset, size) == (1 << 8 * size) - 1
    slots.registers.write(offset, size, (1 << 8 * size) - 1)
    assert slots.ejected == []
    assert slots.registers.read(UP, 4) == 1 << 6


class Line:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set_level(self, asserted: bool) -> None:
        self.levels.append(asserted)


def test_event_is_an_edge_and_a_bit_that_reading_clears() -> None:
    line = Line()
    events = EventDevice(line)
    events.tell(GED_PCI)
    events.tell(GED_PCI)
    assert line.levels == [True, False] * 2
    events.write(0, 1, 0xFF)
    assert events.read(0, 2) == 0xFFFF
    assert [events.read(0, 1), events.read(0, 1)] == [GED_PCI, 0]
