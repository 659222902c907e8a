# SPDX-License-Identifier: BSD-3-Clause
"""A look at the queue of a disk changes nothing, whoever serves it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from tests.support.block_driver import FLUSH, GET_ID, IN, OK, OUT, SECTOR, BlockDriver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION_1 = 1 << 32
EVENT_IDX = 1 << 29


@pytest.fixture(params=[0, EVENT_IDX], ids=["flags", "events"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BlockDriver]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 * SECTOR))
    fd = os.open(path, os.O_RDWR)
    device = Block(BlockSpec(str(path)), fd)
    driver = BlockDriver(device, fd, device.features() | VERSION_1 | int(request.param))
    yield driver
    driver.close()


def looked_at(disk: BlockDriver) -> int:
    """Look twice; return how many chains were served, as the device sees it."""
    length = 1 << 20
    before = disk.memory.read(0, length)
    (_, first), (_, second) = (disk.worker.positions()[0] for _ in range(2))
    assert disk.memory.read(0, length) == before
    assert first == second
    assert first is not None
    assert first.published == first.next_used == first.next_avail
    return first.next_used


def test_look_between_requests_changes_nothing(disk: BlockDriver) -> None:
    done = 0
    for sector in range(40):
        assert looked_at(disk) == done
        data = bytes([sector]) * SECTOR
        assert disk.request(OUT, sector, out=[data]).status == OK
        if sector % 2:
            assert looked_at(disk) == done + 1
        assert disk.request(IN, sector, into=[SECTOR]).data == data
        if sector % 3:
            assert looked_at(disk) == done + 2
        kind, into = (FLUSH, []) if sector % 4 else (GET_ID, [20])
        assert disk.request(kind, 0, into=into).status == OK
        done += 3
    assert looked_at(disk) == done
