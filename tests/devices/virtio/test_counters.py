# SPDX-License-Identifier: BSD-3-Clause
"""Counters as the vmm reads them."""

from __future__ import annotations

from devices.virtio.counters import CELL_COUNT, COUNTER_NAMES, ERRORS, Counters, named


def test_errors_are_counted_in_their_cell() -> None:
    counters = Counters()
    counters.count_error()
    counters.count_error()
    assert (counters.errors, counters.cells[ERRORS]) == (2, 2)


def test_specific_counters_come_after_the_common_ones() -> None:
    counters = Counters()
    counters.add(0)
    counters.add(9, 5)
    counters.add(9)
    cells = list(counters.cells[:CELL_COUNT])
    assert cells == [0] * len(COUNTER_NAMES) + [1] + [0] * 8 + [6]
    assert len(cells) == CELL_COUNT


def test_cell_of_the_greatest_number_starts_again() -> None:
    counters = Counters()
    counters.add(0, (1 << 64) - 1)
    counters.add(0, 2)
    assert counters.cells[len(COUNTER_NAMES)] == 1


def test_names_tell_the_devices_own_last() -> None:
    assert named(list(range(CELL_COUNT)), ("retransmits",)) == {
        "requests": 0,
        "bytes_from_guest": 1,
        "bytes_to_guest": 2,
        "errors": 3,
        "kicks": 4,
        "interrupts": 5,
        "retransmits": 6,
    }
