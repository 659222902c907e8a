# SPDX-License-Identifier: BSD-3-Clause
"""A block device of the host whose sectors are larger than the guest's: a real one."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.spec import BlockSpec
from tests.support.block_driver import (
    DISCARD,
    FLUSH,
    IN,
    OK,
    SECTOR,
    UNMAP,
    WRITE_ZEROES,
    BlockDriver,
    ranges,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

SECTORS = 4096
FULL = b"\xff" * (SECTORS * SECTOR)

# What guests ask for: blkdiscard -z -o 512 -l 512, -o 10240 -l 1024, and ranges across blocks.
SEGMENTS = [(1, 1), (20, 2), (100, 300), (7, 2), (8, 16), (SECTORS - 9, 9)]


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A loop device with sectors of 4096 bytes, full of ones."""
    backing = tmp_path / "backing"
    backing.write_bytes(FULL)
    command = ["losetup", "--sector-size", "4096", "-f", "--show", str(backing)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    path = made.stdout.strip()
    yield path
    subprocess.run(["losetup", "-d", path], check=True)


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("flags", [0, UNMAP], ids=["keep", "unmap"])
def test_zeros_reach_every_sector_and_no_other(loop_device: str, flags: int, direct: bool) -> None:
    disk = BlockDriver.start(BlockSpec(loop_device, direct=direct))
    expected = bytearray(FULL)
    for sector, count in SEGMENTS:
        assert disk.request(WRITE_ZEROES, 0, out=[ranges((sector, count, flags))]).status == OK
        expected[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
    found = b"".join(
        disk.request(IN, sector, into=[256 * SECTOR]).data for sector in range(0, SECTORS, 256)
    )
    assert found == bytes(expected)
    assert disk.request(FLUSH, 0).status == OK
    disk.close()
    fd = os.open(loop_device, os.O_RDONLY)
    assert os.pread(fd, len(FULL), 0) == bytes(expected)
    os.close(fd)


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_discard_of_any_range_succeeds_and_leaves_its_neighbours(
    loop_device: str, direct: bool
) -> None:
    disk = BlockDriver.start(BlockSpec(loop_device, direct=direct))
    for sector, count in SEGMENTS:
        assert disk.request(DISCARD, 0, out=[ranges((sector, count, 0))]).status == OK
    touched = {sector + at for sector, count in SEGMENTS for at in range(count)}
    for sector in sorted(set(range(SECTORS)) - touched):
        assert disk.request(IN, sector, into=[SECTOR]).data == b"\xff" * SECTOR
    disk.close()
