# SPDX-License-Identifier: BSD-3-Clause
"""Configuration mechanism #1, the reset register, ECAM."""

from __future__ import annotations

import threading

import pytest

from devices.bus import Bus
from devices.pci.config_space import ConfigSpace, PciIdentity
from devices.pci.root import ConfigPorts, Ecam, PciRoot

ADDRESS, RESET, DATA = 0xCF8, 0xCF9, 0xCFC
ECAM = 0xF400_0000


class Function:
    def __init__(self) -> None:
        self.space = ConfigSpace(PciIdentity(0x1AF4, 0x1044, 0x00FF00))
        self.space.set(0x50, 4, 0, writable=0xFFFF_FFFF)

    def read_config(self, offset: int, size: int) -> int:
        return self.space.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.space.write(offset, size, value)


class Machine:
    def __init__(self) -> None:
        lock = threading.RLock()
        self.pio, self.mmio = Bus("pio", lock), Bus("mmio", lock)
        self.resets = 0
        root = PciRoot()
        root.add(1, Function())
        self.pio.insert(0xCF8, 8, ConfigPorts(root, self.on_reset))
        self.mmio.insert(ECAM, 64 << 20, Ecam(root))

    def on_reset(self) -> None:
        self.resets += 1

    def select(self, slot: int, register: int, *, bus: int = 0, function: int = 0) -> None:
        self.pio.write(ADDRESS, 4, 1 << 31 | bus << 16 | slot << 11 | function << 8 | register)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_probe_as_linux_does_finds_mechanism_one(machine: Machine) -> None:
    machine.pio.write(0xCFB, 1, 1)
    before = machine.pio.read(ADDRESS, 4)
    machine.pio.write(ADDRESS, 4, 0x8000_0000)
    assert machine.pio.read(ADDRESS, 4) == 0x8000_0000
    assert before == 0
    machine.select(0, 0)
    assert machine.pio.read(DATA, 4) == 0x1237_8086
    machine.select(0, 8)
    assert machine.pio.read(DATA + 2, 2) == 0x0600


@pytest.mark.parametrize(
    ("place", "size", "expected"),
    [
        pytest.param((0, 2, 0), 4, 0xFFFF_FFFF, id="slot"),
        pytest.param((0, 1, 1), 2, 0xFFFF, id="function"),
        pytest.param((3, 1, 0), 1, 0xFF, id="bus"),
        pytest.param((255, 31, 7), 4, 0xFFFF_FFFF, id="last"),
    ],
)
def test_absent_function_reads_all_ones(
    machine: Machine, place: tuple[int, int, int], size: int, expected: int
) -> None:
    bus, slot, function = place
    machine.select(slot, 0, bus=bus, function=function)
    machine.pio.write(DATA, size, 0)
    assert machine.pio.read(DATA, size) == expected
    address = ECAM + (bus % 64 << 20) + (slot << 15) + (function << 12)
    machine.mmio.write(address, size, 0)
    assert machine.mmio.read(address, size) == expected


def test_data_port_disabled_reads_all_ones(machine: Machine) -> None:
    machine.pio.write(ADDRESS, 4, 0x0000_0800)
    assert machine.pio.read(DATA, 4) == 0xFFFF_FFFF
    machine.pio.write(DATA, 4, 0)


def test_data_port_parts_reach_parts_of_the_register(machine: Machine) -> None:
    machine.select(1, 0x50)
    machine.pio.write(DATA + 1, 2, 0xBEEF)
    machine.pio.write(DATA + 3, 1, 0xDE)
    assert machine.pio.read(DATA, 4) == 0xDEBE_EF00
    assert machine.mmio.read(ECAM + (1 << 15) + 0x51, 2) == 0xBEEF


@pytest.mark.parametrize(("port", "size"), [(DATA + 2, 4), (DATA, 8), (DATA + 3, 2), (ADDRESS, 8)])
def test_data_port_straddling_access_is_ignored(machine: Machine, port: int, size: int) -> None:
    machine.select(1, 0x50)
    machine.pio.write(port, size, 0)
    assert machine.pio.read(port, size) == (1 << 8 * size) - 1
    assert machine.pio.read(DATA, 4) == 0


def test_address_register_keeps_only_defined_bits(machine: Machine) -> None:
    machine.pio.write(ADDRESS, 4, 0xFFFF_FFFF)
    assert machine.pio.read(ADDRESS, 4) == 0x80FF_FFFC


@pytest.mark.parametrize(("port", "size"), [(ADDRESS, 1), (ADDRESS, 2), (RESET, 2), (0xCFA, 2)])
def test_narrow_access_to_the_address_register_is_ignored(
    machine: Machine, port: int, size: int
) -> None:
    machine.select(1, 0)
    machine.pio.write(port, size, 0xFFFF)
    assert machine.pio.read(port, size) == (1 << 8 * size) - 1
    assert machine.pio.read(DATA, 4) == 0x1044_1AF4
    assert machine.resets == 0


@pytest.mark.parametrize(
    ("value", "resets"), [(0x02, 0), (0x06, 1), (0x0E, 1), (0x04, 1), (0x00, 0), (0xFB, 0)]
)
def test_reset_register_resets_on_bit_two(machine: Machine, value: int, resets: int) -> None:
    machine.pio.write(RESET, 1, value)
    assert machine.resets == resets
    assert machine.pio.read(RESET, 1) == value & 2


def test_ecam_eight_bytes_and_end_of_function(machine: Machine) -> None:
    base = ECAM + (1 << 15)
    machine.mmio.write(base + 0x50, 8, 0x1122_3344_5566_7788)
    assert machine.mmio.read(base + 0x50, 8) == 0x5566_7788
    assert machine.mmio.read(base + 0xFFD, 8) == 0xFFFF_FFFF_FF00_0000
    assert machine.mmio.read(base - 4, 8) == 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize(("slot", "reason"), [(0, "slot 0 is taken"), (32, "32 is not in 0..31")])
def test_add_impossible_slot_is_refused(slot: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PciRoot().add(slot, Function())


def test_removed_function_is_found_no_more_and_its_slot_is_free() -> None:
    root = PciRoot()
    root.add(5, Function())
    root.remove(5)
    assert root.read(5 << 3, 0, 4) == 0xFFFF_FFFF
    root.add(5, Function())
    for slot in (0, 6):
        with pytest.raises(ValueError, match="nothing to remove"):
            root.remove(slot)


def test_slot_0_of_a_segment_without_a_bridge_is_like_any_other() -> None:
    root = PciRoot(bridge=False)
    assert root.read(0, 0, 4) == 0xFFFF_FFFF
    root.add(0, Function())
    assert root.read(0, 0, 4) != 0xFFFF_FFFF
    root.remove(0)
    assert root.read(0, 0, 4) == 0xFFFF_FFFF
