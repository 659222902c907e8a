# SPDX-License-Identifier: BSD-3-Clause
"""The bus: routing, straddling and odd accesses, overlaps, changes from inside a device."""

from __future__ import annotations

import threading

import pytest

from devices.bus import Bus


class Recorder:
    """Answer ``value`` and remember every access."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.accesses: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size, self.value))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size, value))


@pytest.fixture
def bus() -> Bus:
    return Bus("pio", threading.RLock())


def test_read_inside_range_reaches_the_device_with_its_offset(bus: Bus) -> None:
    serial, rtc = Recorder(0x60), Recorder(0x55)
    bus.insert(0x3F8, 8, serial)
    bus.insert(0x70, 2, rtc)
    assert bus.read(0x3FD, 1) == 0x60
    assert bus.read(0x71, 1) == 0x55
    assert bus.read(0x3F8, 1) == 0x60
    assert serial.accesses == [("read", 5, 1, 0x60), ("read", 0, 1, 0x60)]
    assert rtc.accesses == [("read", 1, 1, 0x55)]


def test_write_inside_range_reaches_the_device(bus: Bus) -> None:
    serial = Recorder()
    bus.insert(0x3F8, 8, serial)
    bus.write(0x3F8, 1, 0x41)
    bus.write(0x3FC, 4, 0x1_0000_0001)
    assert serial.accesses == [("write", 0, 1, 0x41), ("write", 4, 4, 1)]


def test_read_value_wider_than_the_access_is_cut(bus: Bus) -> None:
    bus.insert(0, 8, Recorder(0x1234))
    assert bus.read(0, 1) == 0x34


@pytest.mark.parametrize(
    ("address", "size", "expected"),
    [
        pytest.param(0x0FF, 1, 0xFF, id="before"),
        pytest.param(0x110, 2, 0xFFFF, id="after"),
        pytest.param(0x0FE, 4, 0xFFFF_FFFF, id="straddles-start"),
        pytest.param(0x10E, 4, 0xFFFF_FFFF, id="straddles-end"),
        pytest.param(0x109, 8, (1 << 64) - 1, id="straddles-end-by-one"),
        pytest.param(0x100, 3, 0xFF_FFFF, id="three-bytes"),
        pytest.param(0x100, 16, (1 << 128) - 1, id="sixteen-bytes"),
        pytest.param(0x100, 0, 0, id="no-bytes"),
        pytest.param(0x100, -1, 0, id="negative"),
        pytest.param(2**64 - 1, 8, (1 << 64) - 1, id="wraps"),
    ],
)
def test_access_that_no_device_covers_reads_all_ones(
    bus: Bus, address: int, size: int, expected: int
) -> None:
    device = Recorder()
    bus.insert(0x100, 0x10, device)
    assert bus.read(0x100, 4) == 0
    device.accesses.clear()
    assert bus.read(address, size) == expected
    bus.write(address, size, 0)
    assert device.accesses == []


@pytest.mark.parametrize(
    ("base", "length"),
    [(0x100, 0x10), (0xFF, 2), (0x10F, 1), (0x104, 4), (0, 0x1000), (0x3F0, 9)],
)
def test_insert_overlapping_range_is_refused(bus: Bus, base: int, length: int) -> None:
    bus.insert(0x100, 0x10, Recorder())
    bus.insert(0x3F8, 8, Recorder())
    with pytest.raises(ValueError, match=r"pio: .*overlaps 0x\w+\+0x\w+ \(Recorder\)"):
        bus.insert(base, length, Recorder())
    assert len(bus.ranges) == 2


@pytest.mark.parametrize(("base", "length"), [(0x100, 0), (0x100, -4), (-1, 4)])
def test_insert_impossible_range_is_refused(bus: Bus, base: int, length: int) -> None:
    with pytest.raises(ValueError, match="is not a range"):
        bus.insert(base, length, Recorder())


def test_insert_adjacent_ranges_are_sorted(bus: Bus) -> None:
    for base in (0x20, 0x00, 0x10):
        bus.insert(base, 0x10, Recorder(base))
    assert [entry.base for entry in bus.ranges] == [0x00, 0x10, 0x20]
    assert [bus.read(base, 1) for base in (0x0F, 0x10, 0x2F)] == [0x00, 0x10, 0x20]
    assert "pio: 0x0+0x10 (Recorder)" in repr(bus)


def test_remove_forgets_the_last_hit(bus: Bus) -> None:
    bus.insert(0x100, 4, Recorder())
    assert bus.read(0x100, 1) == 0
    bus.remove(0x100)
    assert bus.read(0x100, 1) == 0xFF
    with pytest.raises(ValueError, match="no range starts at 0x100"):
        bus.remove(0x100)


def test_write_that_moves_its_own_device_finishes(bus: Bus) -> None:
    class Mover(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            bus.remove(0x100)
            bus.insert(value, 4, self)

    mover = Mover(7)
    bus.insert(0x100, 4, mover)
    bus.write(0x100, 4, 0x200)
    assert (bus.read(0x100, 4), bus.read(0x200, 4)) == (0xFFFF_FFFF, 7)


def test_device_call_holds_the_lock() -> None:
    lock = threading.Lock()

    class Prober(Recorder):
        def read(self, offset: int, size: int) -> int:
            return int(lock.locked())

    bus = Bus("mmio", lock)
    bus.insert(0, 8, Prober())
    assert bus.read(0, 1) == 1
    assert not lock.locked()
