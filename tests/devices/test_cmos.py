# SPDX-License-Identifier: BSD-3-Clause
"""The clock: readings, settings in every format, interrupts, and the memory size bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from devices.cmos import CMOS_LENGTH, Cmos
from devices.cmos_time import days_since_epoch, memory_size_bytes, next_match

if TYPE_CHECKING:
    from collections.abc import Callable

# 2026-03-01 13:45:59.25 UTC, a Sunday
NOW = 1772372759.25
MIB = 1 << 20


class FakeHost:
    """A clock that tests move, its timers, and the interrupt line."""

    def __init__(self) -> None:
        self.now = NOW
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.levels: list[bool] = []

    def clock(self) -> float:
        return self.now

    def set_level(self, asserted: bool) -> None:
        self.levels.append(asserted)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        assert seconds >= 0
        self.timers.append((self.now + seconds, callback))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def cmos(host: FakeHost) -> Cmos:
    return Cmos(host, host.call_later, clock=host.clock)


def peek(cmos: Cmos, index: int) -> int:
    cmos.write(0, 1, index)
    return cmos.read(1, 1)


def poke(cmos: Cmos, index: int, value: int) -> None:
    cmos.write(0, 1, index)
    cmos.write(1, 1, value)


def reading(cmos: Cmos) -> list[int]:
    return [peek(cmos, index) for index in (0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00)]


@pytest.mark.parametrize(
    ("register_b", "expected"),
    [
        pytest.param(0x02, [0x20, 0x26, 0x03, 0x01, 1, 0x13, 0x45, 0x59], id="BCD 24 h"),
        pytest.param(0x06, [20, 26, 3, 1, 1, 13, 45, 59], id="binary 24 h"),
        pytest.param(0x00, [0x20, 0x26, 0x03, 0x01, 1, 0x81, 0x45, 0x59], id="BCD 12 h"),
        pytest.param(0x04, [20, 26, 3, 1, 1, 0x81, 45, 59], id="binary 12 h"),
    ],
)
def test_reading_shows_host_time_in_the_chosen_format(
    cmos: Cmos, register_b: int, expected: list[int]
) -> None:
    poke(cmos, 0x0B, register_b)
    assert reading(cmos) == expected


@pytest.mark.parametrize(
    ("hour", "encoded"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (23, 0x91)]
)
def test_hours_of_12_go_around(cmos: Cmos, host: FakeHost, hour: int, encoded: int) -> None:
    host.now = NOW - NOW % 86400 + hour * 3600
    poke(cmos, 0x0B, 0x00)
    assert peek(cmos, 0x04) == encoded
    poke(cmos, 0x04, encoded)
    assert peek(cmos, 0x04) == encoded


def test_update_in_progress_is_set_shortly_before_the_second_and_clears(
    cmos: Cmos, host: FakeHost
) -> None:
    host.now = float(int(NOW)) + 0.9999
    assert peek(cmos, 0x0A) == 0xA6
    host.now = float(int(NOW)) + 1
    assert peek(cmos, 0x0A) == 0x26


def test_one_reading_belongs_together_across_a_second(cmos: Cmos, host: FakeHost) -> None:
    host.now = float(int(NOW)) + 0.9997
    assert not peek(cmos, 0x0A) & 0x80
    assert peek(cmos, 0x02) == 0x45
    host.now += 0.001
    assert peek(cmos, 0x00) == 0x59
    assert not peek(cmos, 0x0A) & 0x80
    assert (peek(cmos, 0x02), peek(cmos, 0x00)) == (0x46, 0x00)


def test_setting_with_the_clock_stopped_as_linux_does(cmos: Cmos, host: FakeHost) -> None:
    poke(cmos, 0x0B, 0x82)
    poke(cmos, 0x0A, 0x76)
    for index, value in ((0x09, 0x99), (0x08, 0x12), (0x07, 0x31), (0x04, 0x23), (0x02, 0x59)):
        poke(cmos, index, value)
    poke(cmos, 0x00, 0x58)
    poke(cmos, 0x32, 0x19)
    host.advance(3)
    poke(cmos, 0x0B, 0x02)
    poke(cmos, 0x0A, 0x26)
    assert reading(cmos) == [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]
    host.advance(0.49)
    assert peek(cmos, 0x00) == 0x58
    host.advance(1.02)
    assert reading(cmos) == [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]


def test_setting_a_running_clock_moves_only_that_field(cmos: Cmos, host: FakeHost) -> None:
    poke(cmos, 0x04, 0x08)
    host.advance(61)
    assert reading(cmos) == [0x20, 0x26, 0x03, 0x01, 1, 0x08, 0x47, 0x00]


def test_default_clock_is_the_host(host: FakeHost) -> None:
    before = time.time()
    cmos = Cmos(host, host.call_later)
    poke(cmos, 0x0B, 0x06)
    century, year, month, day = (peek(cmos, index) for index in (0x32, 0x09, 0x08, 0x07))
    days = days_since_epoch(century * 100 + year, month, day)
    assert before // 86400 <= days <= time.time() // 86400


def test_alarm_fires_once_at_its_time(cmos: Cmos, host: FakeHost) -> None:
    for index, value in ((0x05, 0x13), (0x03, 0x47), (0x01, 0x10)):
        poke(cmos, index, value)
    poke(cmos, 0x0B, 0x22)
    host.advance(70)
    assert host.levels == []
    host.advance(1)
    assert host.levels == [True]
    assert peek(cmos, 0x0C) == 0xB0
    assert host.levels == [True, False]
    assert peek(cmos, 0x0C) == 0x00
    host.advance(86399)
    assert host.levels == [True, False]
    host.advance(1)
    assert host.levels == [True, False, True]


def test_update_interrupt_comes_every_second_that_is_acknowledged(
    cmos: Cmos, host: FakeHost
) -> None:
    poke(cmos, 0x0B, 0x12)
    for _ in range(3):
        host.advance(1)
        assert peek(cmos, 0x0C) & 0x90 == 0x90
    assert host.levels == [True, False] * 3
    host.advance(10)
    assert host.levels[6:] == [True]
    assert host.timers == []


def test_periodic_interrupt_waits_for_its_acknowledgement(cmos: Cmos, host: FakeHost) -> None:
    poke(cmos, 0x0A, 0x2F)  # 2 Hz
    poke(cmos, 0x0B, 0x42)
    host.advance(0.6)
    assert host.levels == [True]
    host.advance(10)
    assert host.levels == [True]
    assert peek(cmos, 0x0C) & 0xC0 == 0xC0
    host.advance(0.4)
    assert host.levels == [True, False]
    host.advance(0.2)
    assert host.levels == [True, False, True]


def test_disabling_an_interrupt_lowers_the_line_and_lets_its_timers_end(
    cmos: Cmos, host: FakeHost
) -> None:
    poke(cmos, 0x0B, 0x72)
    host.advance(2)
    poke(cmos, 0x0B, 0x02)
    host.advance(100)
    assert host.levels == [True, False]
    assert host.timers == []


def test_timers_do_not_pile_up(cmos: Cmos, host: FakeHost) -> None:
    for index, value in ((0x0B, 0x26), (0x03, 0xFF), (0x05, 0xFF)):  # an alarm in every minute
        poke(cmos, index, value)
    most = 0
    for second in range(60):
        for earlier in range(59, 0, -1):
            poke(cmos, 0x01, (59 + second + earlier) % 60)
            most = max(most, len(host.timers))
        host.advance(1)
        peek(cmos, 0x0C)  # the alarm is taken, and the next one armed
    assert most < 8


def test_polled_flags_need_no_timer(cmos: Cmos, host: FakeHost) -> None:
    for index in (0x01, 0x03, 0x05):
        poke(cmos, index, 0xFF)
    assert peek(cmos, 0x0C) == 0x00
    host.advance(1)
    assert peek(cmos, 0x0C) == 0x30
    assert host.timers == []


@pytest.mark.parametrize(
    ("time_of_day", "expected"),
    [
        pytest.param((None, None, None), 0, id="any"),
        pytest.param((13, 46, 0), 0, id="now"),
        pytest.param((13, 45, 59), 86399, id="just past"),
        pytest.param((None, None, 30), 30, id="every minute"),
        pytest.param((None, 0, None), 840, id="every hour"),
        pytest.param((0, 0, 0), 36840, id="midnight"),
    ],
)
def test_next_match(time_of_day: tuple[int | None, int | None, int | None], expected: int) -> None:
    start = int(NOW) + 1
    assert next_match(start, *time_of_day) - start == expected


@pytest.mark.parametrize("time_of_day", [(24, 0, 0), (0, 60, None), (None, None, 99)])
def test_next_match_of_no_time_is_more_than_a_day_away(
    time_of_day: tuple[int | None, int | None, int | None],
) -> None:
    assert next_match(0, *time_of_day) > 86400


def test_days_since_epoch_agrees_with_the_c_library() -> None:
    for days in range(-200_000, 400_000, 97):
        date = time.gmtime(days * 86400)
        assert days_since_epoch(date.tm_year, date.tm_mon, date.tm_mday) == days


def test_memory_sizes_are_told_in_their_units(host: FakeHost) -> None:
    cmos = Cmos(host, host.call_later, low_bytes=512 * MIB, high_bytes=5 << 30)
    assert [peek(cmos, index) for index in (0x15, 0x16)] == [0x80, 0x02]
    assert [peek(cmos, index) for index in (0x17, 0x18, 0x30, 0x31)] == [0xFF] * 4
    assert [peek(cmos, index) for index in (0x34, 0x35)] == [0x00, 0x1F]
    assert [peek(cmos, index) for index in (0x5B, 0x5C, 0x5D)] == [0x00, 0x40, 0x01]


def test_memory_sizes_of_a_tiny_machine_do_not_wrap() -> None:
    assert set(memory_size_bytes(MIB // 2, 0).values()) == {0x80, 0x02, 0x00}


def test_index_ignores_the_nmi_bit_and_is_write_only(cmos: Cmos) -> None:
    poke(cmos, 0x80 | 0x0F, 0x5A)
    assert peek(cmos, 0x0F) == 0x5A
    assert cmos.read(0, 1) == 0xFF


def test_register_d_says_valid_and_cannot_be_written(cmos: Cmos) -> None:
    poke(cmos, 0x0D, 0x00)
    assert peek(cmos, 0x0D) == 0x80


@pytest.mark.parametrize("register_b", [0x00, 0x02, 0x04, 0x06, 0x80, 0x72, 0xFF])
def test_hostile_values_in_every_register_never_raise(
    cmos: Cmos, host: FakeHost, register_b: int
) -> None:
    poke(cmos, 0x0B, register_b)
    for index in range(256):
        for value in (0x00, 0x0F, 0x7F, 0x99, 0xBF, 0xFF):
            poke(cmos, index, value)
            host.advance(0.3)
            assert 0 <= peek(cmos, index) <= 0xFF
        assert len(host.timers) < 64
    assert all(0 <= value <= 0xFF for value in reading(cmos))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_hostile_sizes_never_raise(cmos: Cmos, size: int) -> None:
    for offset in range(CMOS_LENGTH):
        cmos.write(offset, size, (1 << (8 * size)) - 1)
        assert 0 <= cmos.read(offset, size) < 1 << (8 * size)
