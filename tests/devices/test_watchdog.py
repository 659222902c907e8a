# SPDX-License-Identifier: BSD-3-Clause
"""The watchdog's registers as a driver uses them that knows the table alone, and hostile ones."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from devices.watchdog import WATCHDOG_BYTES, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

CONTROL, COUNTDOWN, LEFT, PING, STATUS = 0, 4, 8, 12, 16
PERIODS_PER_SECOND = 10
LEAST, MOST, DEFAULT = 10, 36_000, 300


class Rig:
    """A watchdog whose time passes at our word."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.made = 0
        self.expired: list[float] = []
        self.watchdog = Watchdog(self._call_later, self.expired.append, lambda: self.now)

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        assert seconds >= 0
        self.made += 1
        self.timers.append((self.now + seconds, callback))

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.watchdog.write(offset, size, value)

    def read(self, offset: int, size: int = 4) -> int:
        return self.watchdog.read(offset, size)

    def start(self, seconds: int) -> None:
        self.write(COUNTDOWN, seconds * PERIODS_PER_SECOND)
        self.write(CONTROL, 1)

    def run_due(self) -> None:
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback in due:
            callback()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with every timer at its time."""
        end = self.now + seconds
        while self.timers and min(self.timers)[0] <= end:
            self.now = max(self.now, min(self.timers)[0])
            self.run_due()
        self.now = end


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_timer_is_stopped_until_the_guest_starts_it(rig: Rig) -> None:
    assert [rig.read(at) for at in range(0, WATCHDOG_BYTES, 4)] == [0, DEFAULT, 0, 0, 0]
    rig.write(COUNTDOWN, 20)
    rig.write(PING, 1)
    assert (rig.timers, rig.read(CONTROL)) == ([], 0)


def test_guest_that_does_not_ping_is_reset_once_and_on_time(rig: Rig) -> None:
    rig.start(30)
    rig.pass_time(29.9)
    assert rig.expired == []
    rig.pass_time(0.2)
    assert rig.expired == [30.0]
    rig.pass_time(1000)
    assert (rig.expired, rig.timers) == ([30.0], [])


def test_ping_starts_the_countdown_anew(rig: Rig) -> None:
    rig.start(3)
    for _ in range(10):
        rig.pass_time(2.95)
        assert rig.read(LEFT) == 1
        rig.write(PING, 1)
        assert rig.read(LEFT) == 30
    assert rig.expired == []


def test_new_countdown_counts_from_the_next_ping(rig: Rig) -> None:
    rig.start(30)
    rig.write(COUNTDOWN, 20)
    assert (rig.read(COUNTDOWN), rig.read(LEFT)) == (20, 300)
    rig.write(PING, 1)
    rig.pass_time(2.05)
    assert rig.expired == [2.0]


def test_stopped_timer_expires_never(rig: Rig) -> None:
    rig.start(2)
    assert rig.read(CONTROL) == 1
    rig.write(CONTROL, 0)
    rig.pass_time(100)
    assert (rig.expired, rig.timers, rig.read(CONTROL)) == ([], [], 0)


def test_reset_stops_it_and_tells_the_next_boot_whose_doing_it_was(rig: Rig) -> None:
    rig.start(1)
    rig.pass_time(1.1)
    rig.watchdog.reset()
    assert [rig.read(at) for at in range(0, WATCHDOG_BYTES, 4)] == [0, DEFAULT, 0, 0, 1]
    rig.start(1)
    rig.watchdog.reset()
    rig.pass_time(100)
    assert (len(rig.expired), rig.read(STATUS)) == (1, 0)


def test_guest_clears_the_status(rig: Rig) -> None:
    rig.start(1)
    rig.pass_time(1.1)
    rig.watchdog.reset()
    rig.write(STATUS, 1)
    assert rig.read(STATUS) == 1
    rig.write(STATUS, 0)
    assert rig.read(STATUS) == 0


def test_time_of_a_suspension_does_not_count(rig: Rig) -> None:
    rig.start(5)
    rig.pass_time(3)
    rig.watchdog.hold()
    rig.pass_time(3600)
    rig.watchdog.go_on()
    assert rig.read(LEFT) == 20
    rig.pass_time(1.9)
    assert rig.expired == []
    rig.pass_time(0.2)
    assert rig.expired == [5.0]


def test_reset_while_suspended_leaves_nothing_to_go_on_with(rig: Rig) -> None:
    rig.start(2)
    rig.watchdog.hold()
    rig.watchdog.reset()
    rig.watchdog.go_on()
    rig.pass_time(100)
    assert rig.expired == []
    rig.start(2)
    rig.pass_time(2.1)
    assert rig.expired == [2.0]


def test_suspension_of_a_stopped_timer_starts_nothing(rig: Rig) -> None:
    rig.watchdog.hold()
    rig.watchdog.go_on()
    assert rig.timers == []


def test_time_in_which_our_process_did_not_run_does_not_count(rig: Rig) -> None:
    rig.start(3)
    rig.pass_time(0.5)
    rig.now += 60
    rig.run_due()
    rig.pass_time(1.9)
    assert rig.expired == []
    rig.pass_time(1)
    assert rig.expired == [3.0]


@pytest.mark.parametrize(
    ("value", "count"),
    [(0, LEAST), (9, LEAST), (10, 10), (36_000, MOST), (36_001, MOST), (0xFFFF_FFFF, MOST)],
)
def test_countdown_has_limits(rig: Rig, value: int, count: int) -> None:
    rig.write(COUNTDOWN, value)
    assert rig.read(COUNTDOWN) == count


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        pytest.param(CONTROL, 1, 0, id="byte-of-control"),
        pytest.param(CONTROL, 2, 0, id="half-of-control"),
        pytest.param(CONTROL, 8, 0, id="control-and-countdown"),
        pytest.param(CONTROL + 1, 4, 0, id="not-aligned"),
        pytest.param(COUNTDOWN, 1, 0xFF, id="byte-of-countdown"),
        pytest.param(COUNTDOWN + 2, 4, 0xFFFF_FFFF, id="countdown-and-left"),
        pytest.param(LEFT, 4, 0xFFFF_FFFF, id="left"),
        pytest.param(PING, 4, 0xFFFF_FFFE, id="ping-without-its-bit"),
        pytest.param(PING, 1, 1, id="byte-of-ping"),
        pytest.param(STATUS, 4, 1, id="status-set"),
        pytest.param(STATUS + 3, 1, 0, id="last-byte"),
    ],
)
def test_write_that_the_table_does_not_name_changes_nothing(
    rig: Rig, offset: int, size: int, value: int
) -> None:
    rig.start(30)
    rig.pass_time(2)
    before = [rig.read(at) for at in range(0, WATCHDOG_BYTES, 4)]
    rig.write(offset, value, size)
    assert [rig.read(at) for at in range(0, WATCHDOG_BYTES, 4)] == before == [1, 300, 280, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_part_of_a_register_reads_as_zero(rig: Rig, size: int) -> None:
    rig.start(30)
    assert [rig.read(at, size) for at in range(WATCHDOG_BYTES - size + 1)] == [0] * (
        WATCHDOG_BYTES - size + 1
    )


@pytest.mark.parametrize("seed", range(8))
def test_accesses_of_any_kind_make_one_timer_a_second_at_most(rig: Rig, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(2000):
        offset, size = chance.randrange(WATCHDOG_BYTES), chance.choice((1, 2, 4, 4, 4, 8))
        if chance.random() < 0.7:
            offset &= ~3
        if chance.random() < 0.2:
            assert 0 <= rig.read(offset, size) <= MOST
        else:
            value = chance.choice((0, 1, 1, LEAST, chance.getrandbits(8 * size)))
            rig.write(offset, value, size)
    assert rig.made <= 1
    for passed in range(1, 20):
        rig.pass_time(1)
        rig.write(CONTROL, 1)
        assert (len(rig.timers), rig.made <= passed + 2) == (1, True)
