# SPDX-License-Identifier: BSD-3-Clause
"""Pages of guest memory that go back to the host: the memfd shrinks, and zeros are read there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio.balloon.memory import GuestPages, merge
from sys_util.guest_memory import GuestMemory, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
LOW_PAGES = 64
HIGH_PFN = 1 << 20
HIGH_PAGES = 32


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Two regions, every page of both in use and full of its number."""
    memory = GuestMemory.create(
        [(0, LOW_PAGES * PAGE), (HIGH_PFN * PAGE, HIGH_PAGES * PAGE)],
    )
    for pfn in all_pfns():
        memory.write(pfn * PAGE, content(pfn))
    yield memory
    memory.close()


@pytest.fixture
def pages(memory: GuestMemory) -> GuestPages:
    return GuestPages(memory)


def all_pfns() -> list[int]:
    return [*range(LOW_PAGES), *range(HIGH_PFN, HIGH_PFN + HIGH_PAGES)]


def content(pfn: int) -> bytes:
    return (pfn + 1).to_bytes(8, "little") * (PAGE // 8)


def allocated_pages(memory: GuestMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512 // PAGE


def gone(memory: GuestMemory) -> set[int]:
    """Return the pages that read as zeros; every other one must be as it was."""
    missing = {pfn for pfn in all_pfns() if memory.read(pfn * PAGE, PAGE) == bytes(PAGE)}
    for pfn in set(all_pfns()) - missing:
        assert memory.read(pfn * PAGE, PAGE) == content(pfn)
    return missing


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        pytest.param([], set(), id="none"),
        pytest.param([0], {0}, id="first"),
        pytest.param([7, 5, 6], {5, 6, 7}, id="any-order"),
        pytest.param([9, 9, 9], {9}, id="repeated"),
        pytest.param([1, 3, 5], {1, 3, 5}, id="scattered"),
        pytest.param([HIGH_PFN + 3, 2], {2, HIGH_PFN + 3}, id="both-regions"),
        pytest.param([LOW_PAGES - 1, HIGH_PFN], {LOW_PAGES - 1, HIGH_PFN}, id="edges"),
    ],
)
def test_released_pages_leave_the_host_and_read_as_zeros(
    memory: GuestMemory, pages: GuestPages, numbers: list[int], expected: set[int]
) -> None:
    before = allocated_pages(memory)
    assert pages.release_numbers(numbers) == 0
    assert before - allocated_pages(memory) == len(expected)
    assert pages.released_bytes == len(expected) * PAGE
    assert gone(memory) == expected


@pytest.mark.parametrize(
    ("numbers", "outside", "expected"),
    [
        pytest.param([LOW_PAGES], 1, set(), id="after-low"),
        pytest.param([HIGH_PFN - 1, HIGH_PFN], 1, {HIGH_PFN}, id="before-high"),
        pytest.param([HIGH_PFN + HIGH_PAGES], 1, set(), id="after-high"),
        pytest.param([0xFFFF_FFFF, 0xFFFF_FFFF, 4], 1, {4}, id="far"),
        pytest.param(list(range(LOW_PAGES - 2, LOW_PAGES + 3)), 3, {62, 63}, id="run-out"),
    ],
)
def test_pages_that_are_no_memory_are_counted_and_left_out(
    memory: GuestMemory,
    pages: GuestPages,
    numbers: list[int],
    outside: int,
    expected: set[int],
) -> None:
    assert pages.release_numbers(numbers) == outside
    assert gone(memory) == expected


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        pytest.param(0, 4 * PAGE, {0, 1, 2, 3}, id="whole"),
        pytest.param(1, 4 * PAGE, {1, 2, 3}, id="unaligned"),
        pytest.param(PAGE - 1, PAGE + 2, {1}, id="one-inside"),
        pytest.param(PAGE + 1, PAGE - 2, set(), id="within-a-page"),
        pytest.param(5 * PAGE - 1, 2, set(), id="across-an-edge"),
        pytest.param((LOW_PAGES - 1) * PAGE, PAGE, {LOW_PAGES - 1}, id="end"),
    ],
)
@pytest.mark.parametrize("base_pfn", [0, HIGH_PFN])
def test_views_lose_their_whole_pages(
    memory: GuestMemory,
    pages: GuestPages,
    base_pfn: int,
    offset: int,
    length: int,
    expected: set[int],
) -> None:
    if base_pfn and expected == {LOW_PAGES - 1}:
        offset, expected = (HIGH_PAGES - 1) * PAGE, {HIGH_PAGES - 1}
    pages.release_views([memory.view(base_pfn * PAGE + offset, length)])
    assert gone(memory) == {base_pfn + pfn for pfn in expected}


def test_view_of_other_memory_releases_nothing(memory: GuestMemory, pages: GuestPages) -> None:
    pages.release_views([memoryview(bytearray(8 * PAGE))])
    assert gone(memory) == set()


def test_another_mapping_loses_the_pages_too(memory: GuestMemory, pages: GuestPages) -> None:
    other = GuestMemory.attach(os.dup(memory.fd), memory.regions)
    pages.release_numbers([3])
    assert other.read(3 * PAGE, PAGE) == bytes(PAGE)
    other.write(3 * PAGE, b"new")
    assert memory.read(3 * PAGE, 4) == b"new\0"
    other.close()


def test_regions_that_lie_apart_in_the_file_are_found() -> None:
    fd = os.dup((whole := GuestMemory.create([(0, 16 * PAGE)])).fd)
    whole.write(0, b"\xff" * 16 * PAGE)
    memory = GuestMemory.attach(
        fd, [MemoryRegion(0x10000, 4 * PAGE, PAGE), MemoryRegion(0x40000, 4 * PAGE, 8 * PAGE)]
    )
    GuestPages(memory).release_numbers([0x10, 0x43])
    holes = {at for at in range(16) if whole.read(at * PAGE, PAGE) == bytes(PAGE)}
    assert holes == {1, 11}
    memory.close()
    whole.close()


@given(st.lists(st.integers(0, 60)))
def test_merge_covers_each_number_once_with_gaps_between(numbers: list[int]) -> None:
    runs = merge(numbers)
    covered = [number for start, end in runs for number in range(start, end)]
    assert covered == sorted(set(numbers))
    ends = [end for _, end in runs[:-1]]
    assert all(start > end for end, (start, _) in zip(ends, runs[1:], strict=True))


def test_pages_of_a_block_that_is_not_there_are_not_memory() -> None:
    hot, block = 1 << 32, 2 << 20
    memory = GuestMemory.create([(0, 1 << 20)], hot_ranges=[(hot, 3 * block, block)])
    area = memory.hot_areas[0]
    area.show(1, 1)
    memory.write(hot + block, b"x")
    pages = GuestPages(memory)
    first, per_block = hot // PAGE, block // PAGE
    numbers = range(first + per_block - 2, first + 2 * per_block + 3)
    assert pages.release_numbers(numbers) == 5
    assert pages.released_bytes == block
    assert memory.read(hot + block, 1) == b"\0"
    memory.close()
