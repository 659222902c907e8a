# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory: which addresses can be reached, and what other processes may do."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sys_util import linux
from sys_util.errors import GuestAddressError, HostError, ProtocolError
from sys_util.guest_memory import HUGE_PAGE_BYTES, SEALS, GuestMemory, MemoryRegion
from sys_util.linux import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, buffer_address, fallocate
from tests.support.huge_pages import HOST_MAKES_HUGE_PAGES, huge_kib

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
HIGH = 0x1_0000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 4 * PAGE), (HIGH, 2 * PAGE)])
    yield memory
    memory.close()


def test_create_regions_follow_each_other_in_the_file(memory: GuestMemory) -> None:
    assert memory.regions == (
        MemoryRegion(0, 4 * PAGE, 0),
        MemoryRegion(HIGH, 2 * PAGE, 4 * PAGE),
    )
    assert os.fstat(memory.fd).st_size == 6 * PAGE


def test_create_seals_size_and_closes_on_exec(memory: GuestMemory) -> None:
    assert fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS) == SEALS
    assert fcntl.fcntl(memory.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(PermissionError, match="not permitted"):
        os.ftruncate(memory.fd, PAGE)
    with pytest.raises(PermissionError, match="not permitted"):
        os.ftruncate(memory.fd, 7 * PAGE)


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        pytest.param([], "without regions", id="none"),
        pytest.param([(0, 0)], "negative or zero", id="zero"),
        pytest.param([(0, -PAGE)], "negative or zero", id="negative-size"),
        pytest.param([(-PAGE, PAGE)], "negative or zero", id="negative-address"),
        pytest.param([(0, 100)], "whole pages", id="odd-size"),
        pytest.param([(1, PAGE)], "whole pages", id="odd-address"),
        pytest.param([((1 << 64) - PAGE, 2 * PAGE)], "beyond 64 bits", id="top"),
        pytest.param([(0, 2 * PAGE), (PAGE, PAGE)], "overlap", id="overlap"),
        pytest.param([(HIGH, PAGE), (0, PAGE)], "out of order", id="order"),
    ],
)
def test_create_impossible_layout_is_refused(ranges: list[tuple[int, int]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        GuestMemory.create(ranges)


def test_write_is_seen_through_read_view_and_file(memory: GuestMemory) -> None:
    memory.write(HIGH + 3, b"hello")
    assert memory.read(HIGH + 3, 5) == b"hello"
    assert bytes(memory.view(HIGH, 16)[3:8]) == b"hello"
    assert os.pread(memory.fd, 5, 4 * PAGE + 3) == b"hello"


def test_view_is_writable_and_live(memory: GuestMemory) -> None:
    view = memory.view(PAGE - 1, 2)
    view[0] = 7
    memory.write(PAGE, b"\x08")
    assert bytes(view) == b"\x07\x08"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        pytest.param(0, 0, id="nothing-at-the-start"),
        pytest.param(4 * PAGE, 0, id="nothing-at-the-end"),
        pytest.param(0, 4 * PAGE, id="whole-region"),
        pytest.param(4 * PAGE - 1, 1, id="last-byte"),
        pytest.param(HIGH, 2 * PAGE, id="high-region"),
    ],
)
def test_view_inside_a_region_has_its_length(memory: GuestMemory, gpa: int, length: int) -> None:
    assert len(memory.view(gpa, length)) == length


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        pytest.param(4 * PAGE, 1, id="first-byte-after"),
        pytest.param(4 * PAGE - 1, 2, id="crosses-the-end"),
        pytest.param(4 * PAGE - 1, HIGH, id="crosses-into-the-next-region"),
        pytest.param(HIGH - 1, 1, id="hole"),
        pytest.param(HIGH - 1, 0, id="nothing-in-the-hole"),
        pytest.param(-1, 1, id="negative-address"),
        pytest.param(-1, 2, id="negative-address-across-zero"),
        pytest.param(PAGE, -1, id="negative-length"),
        pytest.param((1 << 64) - 1, 2, id="wraps-64-bits"),
        pytest.param(1 << 64, 1, id="beyond-64-bits"),
        pytest.param(0, 1 << 64, id="endless"),
    ],
)
def test_view_outside_memory_raises(memory: GuestMemory, gpa: int, length: int) -> None:
    with pytest.raises(GuestAddressError, match="no guest memory at") as caught:
        memory.view(gpa, length)
    assert (caught.value.address, caught.value.length) == (gpa, length)


def test_write_across_the_end_stores_nothing(memory: GuestMemory) -> None:
    with pytest.raises(GuestAddressError, match="no guest memory"):
        memory.write(4 * PAGE - 2, b"abc")
    assert memory.read(4 * PAGE - 2, 2) == b"\0\0"


def test_attach_shares_the_bytes(memory: GuestMemory) -> None:
    other = GuestMemory.attach(os.dup(memory.fd), memory.regions)
    other.write(HIGH, b"shared")
    other.close()
    assert memory.read(HIGH, 6) == b"shared"


def test_attach_too_small_a_file_is_refused_and_closed(memory: GuestMemory) -> None:
    fd = os.dup(memory.fd)
    with pytest.raises(ProtocolError, match=r"0x6000 bytes is smaller than its regions \(0x7000"):
        GuestMemory.attach(fd, [MemoryRegion(0, 7 * PAGE, 0)])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    "regions",
    [
        pytest.param([], id="none"),
        pytest.param([MemoryRegion(0, PAGE, -PAGE)], id="negative-offset"),
        pytest.param([MemoryRegion(0, PAGE, 1)], id="odd-offset"),
        pytest.param(
            [MemoryRegion(0, PAGE, PAGE), MemoryRegion(HIGH, PAGE, PAGE)], id="shared-offset"
        ),
    ],
)
def test_attach_impossible_regions_are_refused(
    memory: GuestMemory, regions: list[MemoryRegion]
) -> None:
    with pytest.raises(ProtocolError, match="guest memory"):
        GuestMemory.attach(os.dup(memory.fd), regions)


def test_attach_unsealed_memfd_is_refused() -> None:
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    with pytest.raises(ProtocolError, match="not sealed against shrinking"):
        GuestMemory.attach(fd, [MemoryRegion(0, PAGE, 0)])


def mapping_flags(memory: GuestMemory) -> list[list[str]]:
    """Return the VmFlags of every mapping of this memory in this process (proc_pid_smaps(5))."""
    flags: list[list[str]] = []
    ours = False
    inode = str(os.fstat(memory.fd).st_ino)
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            if "-" in line.split(" ", 1)[0]:
                ours = line.split()[4] == inode
            elif ours and line.startswith("VmFlags:"):
                flags.append(line.split())
    assert len(flags) >= len(memory.mappings)
    return flags


def test_mappings_stay_out_of_core_dumps(memory: GuestMemory) -> None:
    assert all("dd" in words for words in mapping_flags(memory))


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="a kernel without huge pages"
)
def test_mappings_ask_for_huge_pages(memory: GuestMemory) -> None:
    assert all("hg" in words for words in mapping_flags(memory))


def test_mapping_and_file_are_aligned_alike_for_huge_pages() -> None:
    memory = GuestMemory.create([(0, 2 * HUGE_PAGE_BYTES + PAGE), (HIGH, 2 * HUGE_PAGE_BYTES)])
    for region, mapping in memory.mappings:
        assert (buffer_address(mapping) - region.file_offset) % HUGE_PAGE_BYTES == 0
    memory.close()


def used_bytes(memory: GuestMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512


@pytest.fixture
def large() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 4 * HUGE_PAGE_BYTES)])
    yield memory
    memory.close()


needs_huge_pages = pytest.mark.skipif(
    not HOST_MAKES_HUGE_PAGES, reason="a host that makes no huge pages"
)


@needs_huge_pages
def test_make_huge_puts_huge_pages_where_they_would_be_filled(large: GuestMemory) -> None:
    large.write(HUGE_PAGE_BYTES + 5, b"kept")
    assert large.make_huge(HUGE_PAGE_BYTES - PAGE, HUGE_PAGE_BYTES + 3 * PAGE)
    assert huge_kib(os.getpid()) == HUGE_PAGE_BYTES >> 10
    assert used_bytes(large) == HUGE_PAGE_BYTES
    assert large.read(HUGE_PAGE_BYTES + 5, 5) == b"kept\0"


@needs_huge_pages
def test_hole_in_a_huge_page_is_empty_and_the_rest_stays(large: GuestMemory) -> None:
    large.make_huge(0, HUGE_PAGE_BYTES)
    large.write(0, b"\xff" * HUGE_PAGE_BYTES)
    hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    fallocate(large.fd, hole, 8 * PAGE, HUGE_PAGE_BYTES - 8 * PAGE)
    assert used_bytes(large) == 8 * PAGE
    assert large.read(7 * PAGE, 2 * PAGE) == b"\xff" * PAGE + b"\0" * PAGE


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        pytest.param(0, 0, id="nothing"),
        pytest.param(0, HUGE_PAGE_BYTES // 2 - 1, id="less-than-half-of-one"),
        pytest.param(HUGE_PAGE_BYTES // 2 + 1, HUGE_PAGE_BYTES - 2, id="less-than-half-of-each"),
    ],
)
def test_make_huge_takes_no_memory_for_small_things(
    large: GuestMemory, gpa: int, length: int
) -> None:
    assert large.make_huge(gpa, length)
    assert used_bytes(large) == 0


def test_make_huge_at_an_odd_end_stays_inside_of_memory() -> None:
    memory = GuestMemory.create([(0, 2 * HUGE_PAGE_BYTES - PAGE)])
    memory.make_huge(HUGE_PAGE_BYTES, HUGE_PAGE_BYTES - PAGE)
    assert used_bytes(memory) == 0
    memory.close()


def test_make_huge_outside_of_memory_raises(large: GuestMemory) -> None:
    with pytest.raises(GuestAddressError, match="no guest memory"):
        large.make_huge(3 * HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM, errno.EBUSY, errno.EAGAIN])
def test_host_without_huge_pages_changes_nothing(
    large: GuestMemory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_view: memoryview, _advice: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(linux, "madvise", refuse)
    large.write(3, b"kept")
    assert not large.make_huge(0, 2 * HUGE_PAGE_BYTES)
    assert large.read(0, 8) == b"\0\0\0kept\0"


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="a kernel without huge pages"
)
def test_memory_without_huge_pages_refuses_them() -> None:
    memory = GuestMemory.create([(0, 2 * HUGE_PAGE_BYTES)], huge_pages=False)
    other = GuestMemory.attach(os.dup(memory.fd), memory.regions, huge_pages=memory.huge_pages)
    memory.make_huge(0, HUGE_PAGE_BYTES)
    assert used_bytes(memory) == 0
    assert all("nh" in words for words in mapping_flags(memory))
    other.close()
    memory.close()


def test_close_with_a_live_view_leaves_the_view_usable() -> None:
    memory = GuestMemory.create([(0, PAGE)])
    view = memory.view(0, 4)
    memory.close()
    view[:] = b"live"
    assert bytes(view) == b"live"
    with pytest.raises(GuestAddressError, match="no guest memory"):
        memory.view(0, 1)


def test_close_twice_is_harmless() -> None:
    memory = GuestMemory.create([(0, PAGE)])
    memory.close()
    memory.close()
    assert memory.fd == -1


def free_huge_pages() -> int:
    path = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(path.read_text()) if path.exists() else 0


def test_populate_takes_all_memory_of_the_start() -> None:
    memory = GuestMemory.create([(0, 1 << 20)], hot_ranges=[(HIGH, 4 << 20, 2 << 20)])
    memory.populate()
    assert os.fstat(memory.fd).st_blocks * 512 == 1 << 20
    memory.close()


def policies(fd: int) -> list[str]:
    """Return the NUMA policy of each of our mappings of a memfd."""
    inode = os.fstat(fd).st_ino
    maps = Path("/proc/self/maps").read_text().splitlines()
    starts = {line.split("-")[0] for line in maps if line.split()[4] == str(inode)}
    told = Path("/proc/self/numa_maps").read_text().splitlines()
    return [line.split()[1] for line in told if line.split()[0].lstrip("0") in starts]


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="the kernel has no NUMA")
def test_pages_come_from_the_node_to_which_they_are_bound() -> None:
    memory = GuestMemory.create(
        [(0, 4 << 20), (HIGH, 4 << 20)], hot_ranges=[(2 * HIGH, 4096, 4096)]
    )
    memory.bind(2 << 20, 4 << 20, 0)
    other = GuestMemory.attach(os.dup(memory.fd), memory.regions)
    for each in memory, other:
        each.write(3 << 20, b"a")
        each.write(HIGH, b"b")
    assert (
        policies(memory.fd).count("bind:0") == 3
    )  # the other maps a region from an unbound page on
    other.close()
    memory.close()


def test_node_that_the_host_lacks_is_refused() -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    for node in (1000, 1 << 20):
        with pytest.raises(HostError, match=f"from NUMA node {node} of the host .*no memory there"):
            memory.bind(0, 1 << 20, node)
    memory.close()


@pytest.mark.skipif(free_huge_pages() < 2, reason="the host has no free huge pages in its pool")
def test_memory_of_a_pool_is_huge_and_sealed() -> None:
    memory = GuestMemory.create([(0, 2 << 20), (HIGH, 2 << 20)], pool_page_bytes=2 << 20)
    other = GuestMemory.attach(os.dup(memory.fd), memory.regions)
    memory.write(HIGH, b"here")
    assert other.read(HIGH, 4) == b"here"
    assert os.fstat(memory.fd).st_blksize == 2 << 20
    other.close()
    memory.close()


def test_pool_that_has_too_little_is_refused() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="map 1048576 MiB of guest memory"):
        GuestMemory.create([(0, 1 << 40)], pool_page_bytes=2 << 20)
    assert len(os.listdir("/proc/self/fd")) == before
