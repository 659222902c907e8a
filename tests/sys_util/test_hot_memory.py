# SPDX-License-Identifier: BSD-3-Clause
"""Memory that comes and goes in blocks: what is an address, for every process that maps it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sys_util.errors import GuestAddressError, ProtocolError
from sys_util.guest_memory import GuestMemory, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
BLOCK = 2 * MIB
HOT = 0x1_0000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 4096)], hot_ranges=[(HOT, 4 * BLOCK, BLOCK)])
    yield memory
    memory.close()


@pytest.fixture
def device(memory: GuestMemory) -> Iterator[GuestMemory]:
    """The same memory as a device process has it."""
    device = GuestMemory.attach(os.dup(memory.fd), memory.regions)
    yield device
    device.close()


def test_create_hot_memory_takes_no_memory_and_is_no_address(memory: GuestMemory) -> None:
    assert memory.boot_regions == (MemoryRegion(0, 4096, 0),)
    assert memory.regions[1] == MemoryRegion(HOT, 4 * BLOCK, BLOCK, BLOCK)
    assert os.fstat(memory.fd).st_blocks == 0
    with pytest.raises(GuestAddressError):
        memory.view(HOT, 1)


def test_block_that_comes_is_an_address_at_once_for_all_who_map_it(
    memory: GuestMemory, device: GuestMemory
) -> None:
    memory.hot_areas[0].show(1, 2)
    device.write(HOT + 2 * BLOCK - 2, b"word")  # over the border of two blocks
    assert memory.read(HOT + 2 * BLOCK - 2, 4) == b"word"
    assert not device.span(HOT + BLOCK, 1).lasts


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        pytest.param(HOT, 1, id="block-before"),
        pytest.param(HOT + BLOCK - 1, 2, id="over-the-start"),
        pytest.param(HOT + 3 * BLOCK - 1, 2, id="over-the-end"),
        pytest.param(HOT + 3 * BLOCK, 0, id="nothing-in-a-block-that-is-not-there"),
        pytest.param(HOT, 4 * BLOCK, id="everything"),
        pytest.param(HOT + 4 * BLOCK - 1, 2, id="over-the-end-of-the-area"),
    ],
)
def test_address_not_all_of_which_is_there_is_refused(
    memory: GuestMemory, device: GuestMemory, gpa: int, length: int
) -> None:
    memory.hot_areas[0].show(1, 2)
    with pytest.raises(GuestAddressError):
        device.view(gpa, length)


def test_block_that_has_gone_is_no_address_any_more(
    memory: GuestMemory, device: GuestMemory
) -> None:
    area = memory.hot_areas[0]
    area.show(0, 4)
    area.hide(1, 1)
    assert device.hot_areas[0].runs() == [(0, 1), (2, 4)]
    assert device.view(HOT, BLOCK).nbytes == BLOCK
    with pytest.raises(GuestAddressError):
        device.view(HOT, BLOCK + 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"block_bytes": 4095}, "not in whole blocks", id="odd-block"),
        pytest.param({"block_bytes": 3 * MIB}, "not in whole blocks", id="part-of-a-block"),
        pytest.param({"block_bytes": 1024}, "not in whole blocks", id="part-of-a-page"),
        pytest.param({"size_bytes": 8 * BLOCK}, "smaller than its regions", id="larger"),
    ],
)
def test_attach_blocks_that_do_not_fit_are_refused(
    memory: GuestMemory, change: dict[str, int], reason: str
) -> None:
    regions = (memory.regions[0], memory.regions[1]._replace(**change))
    with pytest.raises(ProtocolError, match=reason):
        GuestMemory.attach(os.dup(memory.fd), regions)
