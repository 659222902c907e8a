# SPDX-License-Identifier: BSD-3-Clause
"""A disk whose image gets another size while a driver uses it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import MAX_SIZE_BYTES
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import CheckSize, Command, DiskSize, Obeyed, SetLink, SetSize
from devices.virtio.device import CommandError
from tests.support.block_driver import IN, IOERR, OK, OUT, SECTOR, BlockDriver
from tests.support.commands import limits_of
from tests.support.device_context import FakeContext

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTORS = 16


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * SECTOR))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[BlockDriver]:
    driver = BlockDriver.start(BlockSpec(str(image)))
    yield driver
    driver.close()


@pytest.fixture
def context(disk: BlockDriver) -> FakeContext:
    context = FakeContext(disk.memory, disk.worker)
    disk.device.attach(context)
    return context


def capacity(disk: BlockDriver) -> int:
    return int(struct.unpack_from("<Q", disk.device.config())[0])


def resize(disk: BlockDriver, sectors: int) -> None:
    assert disk.device.command(SetSize(sectors * SECTOR)) == Obeyed()


def test_grown_disk_is_told_and_usable_to_its_end(
    disk: BlockDriver, image: Path, context: FakeContext
) -> None:
    assert disk.request(OUT, SECTORS, out=[bytes(SECTOR)]).status == IOERR
    with image.open("r+b") as file:
        file.truncate(2 * SECTORS * SECTOR)
    resize(disk, 2 * SECTORS)
    assert (capacity(disk), context.config_changes) == (2 * SECTORS, 1)
    assert disk.request(OUT, 2 * SECTORS - 1, out=[b"x" * SECTOR]).status == OK
    assert disk.request(IN, 2 * SECTORS - 1, into=[SECTOR]).data == b"x" * SECTOR
    assert disk.request(IN, 2 * SECTORS, into=[SECTOR]).status == IOERR


def test_shrunk_disk_refuses_what_lies_behind_it(disk: BlockDriver, context: FakeContext) -> None:
    resize(disk, 4)
    assert (capacity(disk), context.config_changes) == (4, 1)
    assert disk.request(IN, 3, into=[SECTOR]).status == OK
    assert disk.request(IN, 4, into=[SECTOR]).status == IOERR
    assert disk.request(OUT, 3, out=[bytes(2 * SECTOR)]).status == IOERR


def test_same_size_is_no_change(disk: BlockDriver, context: FakeContext) -> None:
    resize(disk, SECTORS)
    assert context.config_changes == 0


def test_check_changes_nothing(disk: BlockDriver, context: FakeContext) -> None:
    assert disk.device.command(CheckSize(4 * SECTOR)) == DiskSize(SECTORS * SECTOR)
    assert (capacity(disk), context.config_changes) == (SECTORS, 0)


@pytest.mark.parametrize("command", [SetSize, CheckSize])
@pytest.mark.parametrize(
    ("size_bytes", "reason"),
    [
        pytest.param(0, "0 bytes is not in 1", id="zero"),
        pytest.param(513, "513 bytes is not a multiple of the sector 512", id="odd"),
        pytest.param(1 << 63, "bytes is not in 1", id="64-bits"),
    ],
)
def test_size_that_makes_no_sense_is_refused(
    disk: BlockDriver,
    context: FakeContext,
    command: Callable[[int], Command],
    size_bytes: int,
    reason: str,
) -> None:
    with pytest.raises(CommandError, match=reason):
        disk.device.command(command(size_bytes))
    assert (capacity(disk), context.config_changes) == (SECTORS, 0)


def test_greatest_size_is_a_file_offset(disk: BlockDriver, context: FakeContext) -> None:
    disk.device.command(CheckSize(MAX_SIZE_BYTES))
    assert MAX_SIZE_BYTES < 1 << 63


def test_size_has_to_be_whole_blocks(image: Path) -> None:
    disk = BlockDriver.start(BlockSpec(str(image), block_size=4096))
    with pytest.raises(CommandError, match="4608 bytes is not a multiple of the block-size 4096"):
        disk.device.command(SetSize(4608))
    disk.close()


def test_measured_size_that_is_no_whole_blocks_hides_its_end(image: Path) -> None:
    disk = BlockDriver.start(BlockSpec(str(image), block_size=4096))
    disk.device.command(SetSize(4608, measured=True))
    assert capacity(disk) == 4096 // SECTOR
    with pytest.raises(CommandError, match="0 bytes is not in 1"):
        disk.device.command(SetSize(4095, measured=True))
    disk.close()


def test_image_with_a_hidden_end_can_be_resized(image: Path) -> None:
    with image.open("ab") as file:
        file.write(b"end")
    disk = BlockDriver.start(BlockSpec(str(image)))
    assert capacity(disk) == SECTORS
    resize(disk, 2 * SECTORS)
    assert capacity(disk) == 2 * SECTORS
    disk.close()


def test_read_only_disk_keeps_its_size(image: Path) -> None:
    disk = BlockDriver.start(BlockSpec(str(image), read_only=True))
    with pytest.raises(CommandError, match="a read-only disk keeps its size"):
        disk.device.command(SetSize(512))
    disk.close()


def test_limits_are_still_a_command_of_disks(disk: BlockDriver, context: FakeContext) -> None:
    assert limits_of(disk.device).ops_size == 0
    with pytest.raises(CommandError, match="block devices know no link"):
        disk.device.command(SetLink(up=True))
