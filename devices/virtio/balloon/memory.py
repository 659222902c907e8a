# SPDX-License-Identifier: BSD-3-Clause
"""Give pages of guest memory back to the host.

A hole is punched into the memfd: the pages are gone for every process at once, and a guest or
device that touches them later gets new ones full of zeros. (``MADV_DONTNEED`` on a shared mapping
would only drop the page tables of one process.)
"""

from __future__ import annotations

from itertools import chain

from sys_util.linux import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    buffer_address,
    fallocate,
)
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sys_util.guest_memory import GuestMemory
    from sys_util.hot_memory import HotArea

# The unit of the balloon, whatever the size of a page is (virtio 1.3 §5.5.6).
PAGE_SHIFT: Final = 12
PAGE_BYTES: Final = 1 << PAGE_SHIFT

_MODE: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class GuestPages:
    """The pages of one guest, by their number or by a view of them."""

    def __init__(self, memory: GuestMemory) -> None:
        """The caller still owns ``memory``, which must outlive this."""
        self._fd = memory.fd
        self.released_bytes = 0
        self.page_count = sum(region.size_bytes for region in memory.regions) >> PAGE_SHIFT
        # First page, end, and what to add to a page number to get the page of the file.
        self._regions = tuple(
            (
                region.gpa >> PAGE_SHIFT,
                (region.gpa + region.size_bytes) >> PAGE_SHIFT,
                (region.file_offset - region.gpa) >> PAGE_SHIFT,
            )
            for region in memory.boot_regions
        )
        self._hot = memory.hot_areas
        self._mappings = tuple(
            (buffer_address(memoryview(mapping)), region.size_bytes, region.file_offset)
            for region, mapping in memory.mappings
        )

    def release_numbers(self, numbers: Iterable[int]) -> int:
        """Give back pages by their guest page frame numbers, which come in any order.

        Returns:
            How many of the pages are not guest memory, each counted once; they are skipped.

        Raises:
            OSError: the host refused; some pages may be given back.
        """
        outside = 0
        for start, end in merge(numbers):
            outside += end - start
            for first, last, shift in self._regions:
                low, high = max(start, first), min(end, last)
                if low < high:
                    outside -= high - low
                    self._punch((low + shift) << PAGE_SHIFT, (high - low) << PAGE_SHIFT)
            for area in self._hot:
                outside -= self._release_hot(area, start << PAGE_SHIFT, end << PAGE_SHIFT)
        return outside

    def _release_hot(self, area: HotArea, start: int, end: int) -> int:
        """Give back what is there of an area between two addresses; return how many pages."""
        low, high = max(start, area.start), min(end, area.end)
        pages = 0
        while low < high:
            stop = min(high, low + area.block_bytes - (low - area.start) % area.block_bytes)
            if area.has(low, stop):
                self._punch(area.file_offset + low - area.start, stop - low)
                pages += (stop - low) >> PAGE_SHIFT
            low = stop
        return pages

    def release_views(self, views: Iterable[memoryview]) -> None:
        """Give back the whole pages in views of guest memory; parts of pages stay.

        Raises:
            OSError: the host refused; some pages may be given back.
        """
        for view in views:
            address = buffer_address(view)
            for base, size_bytes, file_offset in self._mappings:
                if base <= address < base + size_bytes:
                    start = address - base + file_offset
                    low = -(-start >> PAGE_SHIFT)
                    high = (start + len(view)) >> PAGE_SHIFT
                    if low < high:
                        self._punch(low << PAGE_SHIFT, (high - low) << PAGE_SHIFT)
                    break

    def _punch(self, offset: int, length: int) -> None:
        fallocate(self._fd, _MODE, offset, length)
        self.released_bytes += length


def merge(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive numbers in ``numbers``, as ``(first, end)``; repeats merge."""
    ordered = sorted(numbers)
    if not ordered:
        return []
    runs = []
    start = end = ordered[0]
    for number in chain(ordered, (ordered[-1] + 2,)):
        if number > end:
            runs.append((start, end))
            start = number
        end = number + 1
    return runs
