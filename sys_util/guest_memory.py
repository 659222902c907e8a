# SPDX-License-Identifier: BSD-3-Clause
"""Guest-physical memory: one sealed memfd, which every process that may see it maps the same way.

The seals forbid resizing: if a process could shrink the memfd, the others would get SIGBUS. Every
access names a guest-physical address and a length, and is checked here. ``hot_memory.py`` describes
regions whose blocks come and go.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from itertools import pairwise

from sys_util import linux
from sys_util.errors import GuestAddressError, ProtocolError, raise_host_error
from sys_util.hot_memory import HotArea
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMFD_NAME: Final = "crosvm_guest"
SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

# Without these two another holder of the memfd could truncate it and kill us by SIGBUS.
_REQUIRED_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PAGE_BYTES: Final = mmap.PAGESIZE

# The size of a huge page with pages of 4 KiB, on every architecture.
HUGE_PAGE_BYTES: Final = 2 << 20

# Linux 6.1. Python 3.11 does not know it yet.
MADV_COLLAPSE: Final = 25
# Linux 5.14.
MADV_POPULATE_WRITE: Final = 23


class MemoryRegion(NamedTuple):
    """The guest sees ``size_bytes`` of the memfd, from ``file_offset`` on, at address ``gpa``.

    If ``block_bytes`` is not 0, only some blocks of that size may be there.
    """

    gpa: int
    size_bytes: int
    file_offset: int
    block_bytes: int = 0

    @property
    def blocks(self) -> int:
        """How many blocks there may be; none in a region that is always there."""
        return self.size_bytes // self.block_bytes if self.block_bytes else 0


class Span(NamedTuple):
    """The guest-physical addresses ``start`` to ``end`` (not included) and their bytes.

    One that does not last is to be found again for each access.
    """

    start: int
    end: int
    view: memoryview
    lasts: bool = True


# Contains nothing.
NO_SPAN: Final = Span(0, 0, memoryview(b""))


class GuestMemory:
    """The memory of one guest. Owns the memfd and its mappings; close it once."""

    def __init__(self, fd: int, regions: Sequence[MemoryRegion], *, huge_pages: bool) -> None:
        """Map ``regions`` of ``fd``. Use ``create`` or ``attach``, which check them first."""
        self.fd = fd
        self.huge_pages = huge_pages
        self.regions = tuple(regions)
        mappings: list[tuple[MemoryRegion, memoryview]] = []
        for region in self.regions:
            mapping = linux.map_shared(fd, region.file_offset, region.size_bytes, HUGE_PAGE_BYTES)
            linux.madvise(mapping, mmap.MADV_DONTDUMP)
            _advise_of_huge_pages(mapping, wanted=huge_pages)
            mappings.append((region, mapping))
        self.mappings = tuple(mappings)
        self._spans = tuple(
            Span(region.gpa, region.gpa + region.size_bytes, mapping)
            for region, mapping in mappings
            if not region.block_bytes
        )
        self.hot_areas = self._map_hot_areas()

    def _map_hot_areas(self) -> tuple[HotArea, ...]:
        hot = [each for each in self.mappings if each[0].block_bytes]
        if not hot:
            return ()
        offset = _regions_end(self.regions)
        table = linux.map_shared(self.fd, offset, _table_pages_bytes(self.regions), _PAGE_BYTES)
        areas: list[HotArea] = []
        at = 0
        for region, mapping in hot:
            end = at + region.blocks
            areas.append(HotArea(region.gpa, region.file_offset, mapping, table[at:end]))
            at = end
        return tuple(areas)

    @property
    def boot_regions(self) -> tuple[MemoryRegion, ...]:
        """The regions that are there from the start, whole and for ever."""
        return tuple(region for region in self.regions if not region.block_bytes)

    @classmethod
    def create(
        cls,
        ranges: Sequence[tuple[int, int]],
        *,
        huge_pages: bool = True,
        hot_ranges: Sequence[tuple[int, int, int]] = (),
        pool_page_bytes: int = 0,
    ) -> Self:
        """Make a new guest's memory from ``(gpa, size_bytes)`` ranges, in ascending order.

        Without ``huge_pages`` it has none, whatever shmem_enabled says. ``hot_ranges`` are
        ``(gpa, size_bytes, block_bytes)`` and above the others; none of their blocks is there yet.
        If ``pool_page_bytes`` is not 0, all of it are huge pages of that size from the pool of the
        host (hugetlbfs), of which it consists; then there are no ``hot_ranges``.

        Raises:
            HostError: the host refuses the memfd or the mapping.
        """
        regions = []
        file_offset = 0
        for gpa, size_bytes in ranges:
            regions.append(MemoryRegion(gpa, size_bytes, file_offset))
            file_offset += size_bytes
        for gpa, size_bytes, block_bytes in hot_ranges:
            file_offset = -(-file_offset // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
            regions.append(MemoryRegion(gpa, size_bytes, file_offset, block_bytes))
            file_offset += size_bytes
        reason = _layout_fault(regions)
        if reason:
            raise ValueError(reason)
        fd = -1
        try:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            if pool_page_bytes:
                flags |= os.MFD_HUGETLB | (pool_page_bytes.bit_length() - 1) << os.MFD_HUGE_SHIFT
            fd = os.memfd_create(MEMFD_NAME, flags)
            os.ftruncate(fd, file_offset + _table_pages_bytes(regions))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return cls(fd, regions, huge_pages=huge_pages)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise_host_error("map", f"{file_offset >> 20} MiB of guest memory", error)

    @classmethod
    def attach(cls, fd: int, regions: Sequence[MemoryRegion], *, huge_pages: bool = True) -> Self:
        """Map guest memory that another process made. Takes ownership of ``fd``, on failure too.

        Raises:
            ProtocolError: the memfd is not sealed, or smaller than ``regions`` say.
            HostError: the host refused the mapping.
        """
        try:
            reason = _layout_fault(regions) or _memfd_fault(fd, regions)
            if not reason:
                return cls(fd, regions, huge_pages=huge_pages)
        except OSError as error:
            os.close(fd)
            raise_host_error("map", "the guest memory of another process", error)
        os.close(fd)
        raise ProtocolError(reason)

    def span(self, gpa: int, length: int) -> Span:
        """Return the region in which all ``length`` bytes at ``gpa`` are.

        Raises:
            GuestAddressError: they are not all in one region.
        """
        if length >= 0:
            end = gpa + length
            for span in self._spans:
                if span.start <= gpa and end <= span.end:
                    return span
            for area in self.hot_areas:
                if area.start <= gpa and end <= area.end and area.has(gpa, end):
                    at = gpa - area.start
                    return Span(gpa, end, area.view[at : at + length], lasts=False)
        raise GuestAddressError(gpa, length)

    def view(self, gpa: int, length: int) -> memoryview:
        """Return ``length`` writable bytes at ``gpa``, which the guest may change at any time.

        Raises:
            GuestAddressError: they are not all inside one region.
        """
        start, _, view, _ = self.span(gpa, length)
        at = gpa - start
        return view[at : at + length]

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of ``length`` bytes at ``gpa``."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``gpa``."""
        source = memoryview(data).cast("B")
        self.view(gpa, source.nbytes)[:] = source

    def make_huge(self, gpa: int, length: int) -> bool:
        """Put huge pages where ``length`` bytes at ``gpa`` are, before all of them are written.

        That takes less time than as many small pages, and shmem_enabled need not allow it
        (MADV_COLLAPSE, Linux 6.1). A huge page that the bytes would fill by less than a half is not
        made, since it would cost memory for nothing. Where the host makes none, nothing changes.

        Returns:
            Whether every huge page that was worth it was made.

        Raises:
            GuestAddressError: the bytes are not all inside one region.
        """
        region, _, view, _ = self.span(gpa, length)
        low = _nearest_huge_page(gpa - region)
        high = min(_nearest_huge_page(gpa - region + length), view.nbytes)
        high -= high % HUGE_PAGE_BYTES
        if low >= high or not self.huge_pages:
            return True
        for at in range(low, high, HUGE_PAGE_BYTES):
            view[at]  # a huge page is made only where a page is
        try:
            with view[low:high] as pages:
                linux.madvise(pages, MADV_COLLAPSE)
        except OSError:
            return False
        return True

    def populate(self) -> None:
        """Take all memory of the start from the host now (MADV_POPULATE_WRITE, Linux 5.14).

        Raises:
            HostError: the host has too little, or is too old.
        """
        try:
            for region, mapping in self.mappings:
                if not region.block_bytes:
                    linux.madvise(mapping, MADV_POPULATE_WRITE)
        except OSError as error:
            raise_host_error("take", "all of the guest's memory at the start", error)

    def bind(self, offset: int, length: int, node: int) -> None:
        """Have pages come from one NUMA node of the host, for every process (mbind(2)).

        They are ``length`` bytes at ``offset`` in the memory of the start, as it lies in the memfd.

        Raises:
            HostError: the host has no memory in that node, or refuses it.
        """
        try:
            for region, mapping in self.mappings:
                start = region.file_offset
                low = max(offset, start)
                high = min(offset + length, start + region.size_bytes)
                if low < high and not region.block_bytes:
                    with mapping[low - start : high - start] as pages:
                        linux.bind_memory(pages, node)
        except OSError as error:
            hint = "the host has no memory there" if error.errno == errno.EINVAL else ""
            raise_host_error("take memory from", f"NUMA node {node} of the host", error, hint)

    def clear(self) -> None:
        """Give all of the memory back to the host. Afterwards it is zero, in every process.

        Raises:
            HostError: the host refuses it.
        """
        try:
            for _, mapping in self.mappings:
                linux.madvise(mapping, mmap.MADV_REMOVE)
        except OSError as error:
            raise_host_error("clear", "the guest's memory", error)

    def close(self) -> None:
        """Unmap the memory and close the memfd. A region with a view stays mapped as long as it."""
        mappings, self.mappings = self.mappings, ()
        self._spans = ()
        areas, self.hot_areas = self.hot_areas, ()
        for area in areas:
            area.release()
        for _, mapping in mappings:
            try:
                mapping.release()
            except BufferError:
                continue  # a view exists: Python unmaps the region with the last one
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _nearest_huge_page(offset: int) -> int:
    """Return the multiple of a huge page's size that is nearest to ``offset``."""
    return (offset + HUGE_PAGE_BYTES // 2) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES


def _advise_of_huge_pages(mapping: memoryview, *, wanted: bool) -> None:
    """Ask the host for huge pages, which it gives if shmem_enabled is "advise", or for none.

    With pages of 4 KiB, each page that the guest touches for the first time costs a VM exit: 5,300
    in a boot of 2 s. The guest also needs more of the processor's TLB as long as it runs.
    """
    try:
        linux.madvise(mapping, mmap.MADV_HUGEPAGE if wanted else mmap.MADV_NOHUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this kernel has no huge pages
            raise


def _regions_end(regions: Sequence[MemoryRegion]) -> int:
    """Return where the last region ends in the memfd; the table of blocks follows, if any."""
    return max(region.file_offset + region.size_bytes for region in regions)


def _table_pages_bytes(regions: Sequence[MemoryRegion]) -> int:
    """Return the size of the table of blocks, in whole pages."""
    needed = sum(region.blocks for region in regions)
    return -(-needed // _PAGE_BYTES) * _PAGE_BYTES


def _layout_fault(regions: Sequence[MemoryRegion]) -> str:
    """Say what is wrong with ``regions``, or nothing."""
    if not regions:
        return "guest memory without regions"
    for region in regions:
        if region.size_bytes <= 0 or region.gpa < 0 or region.file_offset < 0:
            return f"guest memory region with a negative or zero part: {region}"
        block_bytes = region.block_bytes
        if block_bytes and (block_bytes % _PAGE_BYTES or region.size_bytes % block_bytes):
            return f"guest memory region not in whole blocks: {region}"
        if (region.gpa | region.size_bytes | region.file_offset) % _PAGE_BYTES:
            return f"guest memory region not in whole pages: {region}"
        if region.gpa + region.size_bytes > 1 << 64:
            return f"guest memory region beyond 64 bits: {region}"
    for below, above in pairwise(regions):
        if below.gpa + below.size_bytes > above.gpa:
            return f"guest memory regions overlap or are out of order at {above.gpa:#x}"
        if below.file_offset + below.size_bytes > above.file_offset:
            return f"guest memory regions share file offset {above.file_offset:#x}"
    return ""


def _memfd_fault(fd: int, regions: Sequence[MemoryRegion]) -> str:
    """Say why ``fd`` cannot be relied on to hold ``regions``, or nothing."""
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    if seals & _REQUIRED_SEALS != _REQUIRED_SEALS:
        return f"guest memory is not sealed against shrinking (seals {seals:#x})"
    size_bytes = os.fstat(fd).st_size
    end = _regions_end(regions) + _table_pages_bytes(regions)
    if end > size_bytes:
        return f"guest memory of {size_bytes:#x} bytes is smaller than its regions ({end:#x})"
    return ""
