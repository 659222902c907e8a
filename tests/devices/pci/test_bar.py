# SPDX-License-Identifier: BSD-3-Clause
"""BARs: sizing, moving, overlapping, leaving the window."""

from __future__ import annotations

import pytest

from devices.bus import Bus
from devices.pci.bar import BarWindow, MemoryBar
from devices.pci.config_space import ConfigSpace, PciIdentity
from tests.devices.fakes import WINDOW_BASE, WINDOW_END, make_window

SIZE = 0x8000


class Constant:
    def __init__(self, value: int) -> None:
        self.value = value

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Function:
    """A configuration space with one BAR whose device answers ``value``."""

    def __init__(self, window: BarWindow, value: int) -> None:
        self.space = ConfigSpace(PciIdentity(1, 2, 3))
        self.bar = MemoryBar(self.space, 0, Constant(value), SIZE, window)
        self.moves: list[int | None] = []
        self.bar.add_listener(self)

    def bar_moved(self, address: int | None) -> None:
        self.moves.append(address)

    def write(self, address: int, *, enabled: bool = True) -> None:
        self.space.write(0x10, 4, address)
        self.bar.decode(enabled=enabled)


@pytest.fixture
def machine() -> tuple[Bus, Function, Function]:
    bus, window = make_window()
    return bus, Function(window, 1), Function(window, 2)


def test_bars_start_at_different_aligned_addresses(
    machine: tuple[Bus, Function, Function],
) -> None:
    bus, one, two = machine
    assert one.space.read(0x10, 4) == WINDOW_BASE
    assert two.space.read(0x10, 4) == WINDOW_BASE + SIZE
    assert bus.ranges == ()


def test_sizing_answers_the_size_and_stops_decoding(
    machine: tuple[Bus, Function, Function],
) -> None:
    bus, one, _ = machine
    one.bar.decode(enabled=True)
    one.write(0xFFFF_FFFF)
    assert one.space.read(0x10, 4) == -SIZE & 0xFFFF_FFFF
    assert one.bar.address is None
    one.write(WINDOW_BASE)
    assert bus.read(WINDOW_BASE, 1) == 1
    assert one.moves == [WINDOW_BASE, None, WINDOW_BASE]


def test_move_while_decoding_follows(machine: tuple[Bus, Function, Function]) -> None:
    bus, one, _ = machine
    one.bar.decode(enabled=True)
    one.write(0xE000_0000)
    assert bus.read(0xE000_0000, 1) == 1
    assert bus.read(WINDOW_BASE, 1) == 0xFF


def test_move_while_not_decoding_waits(machine: tuple[Bus, Function, Function]) -> None:
    bus, one, _ = machine
    one.write(0xE000_0000, enabled=False)
    assert bus.ranges == ()
    one.bar.decode(enabled=True)
    assert bus.read(0xE000_0000, 1) == 1


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(0, id="zero"),
        pytest.param(WINDOW_BASE - SIZE, id="below"),
        pytest.param(WINDOW_END, id="end"),
        pytest.param(0xFFFF_8000, id="top"),
        pytest.param(0xFEE0_0000, id="local-apic"),
    ],
)
def test_bar_outside_the_window_answers_nowhere(
    machine: tuple[Bus, Function, Function], address: int
) -> None:
    bus, one, _ = machine
    one.write(address)
    assert one.bar.address is None
    assert bus.ranges == ()


def test_last_place_of_the_window_is_usable(machine: tuple[Bus, Function, Function]) -> None:
    bus, one, _ = machine
    one.write(WINDOW_END - SIZE)
    assert bus.read(WINDOW_END - 1, 1) == 1


def test_overlap_first_wins_and_the_other_gets_its_turn(
    machine: tuple[Bus, Function, Function],
) -> None:
    bus, one, two = machine
    one.write(0xE000_0000)
    two.write(0xE000_0000)
    assert bus.read(0xE000_0000, 1) == 1
    assert two.bar.address is None
    one.write(0xE100_0000)
    assert bus.read(0xE000_0000, 1) == 2
    assert bus.read(0xE100_0000, 1) == 1


def test_waiting_bar_that_is_disabled_does_not_come_back(
    machine: tuple[Bus, Function, Function],
) -> None:
    bus, one, two = machine
    one.write(0xE000_0000)
    two.write(0xE000_0000)
    two.bar.decode(enabled=False)
    one.bar.decode(enabled=False)
    assert bus.ranges == ()


def test_swap_of_two_bars_ends_with_both_decoded(
    machine: tuple[Bus, Function, Function],
) -> None:
    bus, one, two = machine
    one.bar.decode(enabled=True)
    two.bar.decode(enabled=True)
    one.write(WINDOW_BASE + SIZE)
    two.write(WINDOW_BASE)
    assert bus.read(WINDOW_BASE, 1) == 2
    assert bus.read(WINDOW_BASE + SIZE, 1) == 1


def test_allocate_from_a_full_window_is_refused() -> None:
    _, window = make_window()
    assert window.allocate(0x1000) == WINDOW_BASE
    assert window.allocate(0x1000_0000) == 0xE000_0000
    with pytest.raises(ValueError, match="no 0x10000000 bytes left in PCI window"):
        window.allocate(0x1000_0000)


def test_address_of_a_bar_that_is_closed_is_used_again() -> None:
    bus, window = make_window()
    first = Function(window, 1)
    first.bar.close()
    second = Function(window, 2)
    assert second.space.get(second.bar.register, 4) == WINDOW_BASE
    assert bus.ranges == ()
