# SPDX-License-Identifier: BSD-3-Clause
"""What a disk counts of its reads and writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import Block
from devices.virtio.block.latency import DISK_COUNTERS, note
from devices.virtio.block.spec import BlockSpec
from tests.support.block_driver import FLUSH, IN, IOERR, OK, OUT, SECTOR, VERSION_1, BlockDriver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_reads_and_writes_have_cells_of_their_own() -> None:
    cells = memoryview(bytearray(80)).cast("Q")
    for ns in (30, 10, 20):
        note(cells, ns, write=False)
    note(cells, 7, write=True)
    assert dict(zip(DISK_COUNTERS, cells, strict=True)) == {
        "read_ops": 3,
        "read_timed": 3,
        "read_ns": 60,
        "read_min_ns": 10,
        "read_max_ns": 30,
        "write_ops": 1,
        "write_timed": 1,
        "write_ns": 7,
        "write_min_ns": 7,
        "write_max_ns": 7,
    }


def test_cells_that_somebody_has_filled_wrap() -> None:
    cells = memoryview(bytearray(b"\xff" * 80)).cast("Q")
    note(cells, 3, write=True)
    assert cells[5] == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[BlockDriver]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 * SECTOR))
    fd = os.open(image, os.O_RDWR)
    device = Block(BlockSpec(str(image)), fd)
    driver = BlockDriver(device, fd, device.features() | VERSION_1)
    yield driver
    driver.close()


def test_both_servers_count_reads_and_writes(disk: BlockDriver) -> None:
    for _ in range(9):
        assert disk.request(IN, 5, into=[SECTOR]).status == OK
    assert disk.request(OUT, 5, out=[bytes(SECTOR)]).status == OK
    assert disk.request(FLUSH, 0).status == OK
    cells = disk.worker.counters.specific
    found = dict(zip(DISK_COUNTERS, cells, strict=True))
    assert (found["read_ops"], found["write_ops"]) == (9, 1)
    assert found["write_timed"] == 1
    assert found["read_timed"] in (2, 9)  # the engine times one of eight
    for kind in ("read", "write"):
        least, most, total = (found[f"{kind}_{each}"] for each in ("min_ns", "max_ns", "ns"))
        assert 0 < least <= total // found[f"{kind}_timed"] <= most


def test_refused_requests_are_not_counted(disk: BlockDriver) -> None:
    assert disk.request(IN, 8, into=[SECTOR]).status == IOERR
    assert set(disk.worker.counters.specific) == {0}
