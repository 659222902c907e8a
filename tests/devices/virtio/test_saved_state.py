# SPDX-License-Identifier: BSD-3-Clause
"""What a device remembers beyond its process: whole at every moment, and never believed."""

from __future__ import annotations

import msgpack
import pytest

from devices.virtio.counters import CELL_COUNT, KICKS, REQUESTS, Counters
from devices.virtio.saved_state import MAX_STATE_BYTES, PAGE_CELLS, SavedState
from tests.support.stored import stored

GENERATION = 31


def page() -> memoryview[int]:
    return memoryview(bytearray(4096)).cast("Q")


def test_page_is_large_enough() -> None:
    assert PAGE_CELLS * 8 <= 4096
    assert CELL_COUNT <= GENERATION


def test_first_process_finds_nothing() -> None:
    assert stored(SavedState(page())) is None


def test_successor_finds_what_was_stored_last() -> None:
    cells = page()
    for size in range(5):
        SavedState(cells).store({"size": size, "name": "x" * 100 * size})
        assert stored(SavedState(cells)) == {"size": size, "name": "x" * 100 * size}


def test_longest_state_fits_and_a_longer_one_is_our_bug() -> None:
    saved = SavedState()
    room = MAX_STATE_BYTES - len(msgpack.packb({"data": b""})) - 1  # of a longer length's field
    saved.store({"data": b"x" * room})
    assert stored(saved) == {"data": b"x" * room}
    with pytest.raises(ValueError, match="state of"):
        saved.store({"data": b"x" * (room + 1)})
    assert stored(saved) == {"data": b"x" * room}


class KilledError(Exception):
    """The process ends here."""


class DyingCells:
    """Cells whose writer is killed at its ``left``-th store."""

    def __init__(self, cells: memoryview, left: int) -> None:
        self._cells = cells
        self._left = left
        self._bytes = cells if cells.format == "B" else cells.cast("B")

    def cast(self, kind: str) -> DyingCells:
        assert kind == "B"
        other = DyingCells(self._bytes, 0)
        other._spend = self._spend  # type: ignore[method-assign]
        return other

    def _spend(self) -> None:
        if not self._left:
            raise KilledError
        self._left -= 1

    def __getitem__(self, at: int) -> int:
        value: int = self._cells[at]
        return value

    def __setitem__(self, at: int | slice, value: object) -> None:
        self._spend()
        self._cells[at] = value  # type: ignore[call-overload]


@pytest.mark.parametrize("stores", range(3))
def test_process_killed_while_it_stores_leaves_the_old_state(stores: int) -> None:
    cells = page()
    SavedState(cells).store({"state": "older"})
    SavedState(cells).store({"state": "old"})
    with pytest.raises(KilledError):
        SavedState(DyingCells(cells, stores)).store({"state": "new"})  # type: ignore[arg-type]
    assert stored(SavedState(cells)) == {"state": "old"}


@pytest.mark.parametrize(
    ("length", "data"),
    [
        (MAX_STATE_BYTES + 1, b""),
        ((1 << 64) - 1, b""),
        (0, b""),
        (1, b"\xc1"),
        (2, b"\x01\x01"),
        (1, b"\x90"),
        (3, b"\x81\x01\x01"),
        (3, b"\x81\x90\x01"),
        (1800, b"\x91" * 1800),
    ],
)
def test_nonsense_of_the_last_process_is_no_state(length: int, data: bytes) -> None:
    cells = page()
    for generation in (1, 2):
        slot = 32 + 240 * (generation & 1)
        cells[GENERATION] = generation
        cells[slot] = length
        cells.cast("B")[8 * slot + 8 : 8 * slot + 8 + len(data)] = data
        assert stored(SavedState(cells)) is None


@pytest.mark.parametrize("generation", [(1 << 63) - 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_any_generation_can_be_followed(generation: int) -> None:
    cells = page()
    cells[GENERATION] = generation
    saved = SavedState(cells)
    for value in range(3):
        saved.store({"value": value})
        assert stored(saved) == {"value": value}


def test_counters_go_on_where_the_last_process_stopped() -> None:
    cells = page()
    first = Counters(cells)
    first.count_error()
    cells[REQUESTS] = 7
    successor = Counters(cells)
    successor.count_error()
    assert (successor.requests, successor.errors) == (7, 2)


def test_counter_that_cannot_be_starts_from_nothing() -> None:
    cells = page()
    cells[KICKS] = (1 << 64) - 1
    assert Counters(cells).kicks == cells[KICKS] == 0
