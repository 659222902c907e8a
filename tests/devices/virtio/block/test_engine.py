# SPDX-License-Identifier: BSD-3-Clause
"""What the engine serves, what it leaves to Python, and how a queue goes from one to the other."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block import native
from devices.virtio.block.device import Block
from devices.virtio.block.image import BlockSpec
from devices.virtio.commands import SetLimits, SetSize
from devices.virtio.counters import NATIVE, PYTHON, engine_of
from engine.native import EngineMemory
from sys_util.guest_memory import GuestMemory
from sys_util.linux import buffer_address
from tests.support.block_driver import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    INDIRECT_DESC,
    IOERR,
    OK,
    OUT,
    SECTOR,
    VERSION_1,
    BlockDriver,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.virtio.queue.chain import DescriptorChain

SECTORS = 64
EVENT_IDX = 1 << 29

pytestmark = pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here")


class Told(Block):
    """A disk that notes what Python serves."""

    def __init__(self, spec: BlockSpec, fd: int) -> None:
        super().__init__(spec, fd, engine=True)
        self.by_python = 0

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        self.by_python += 1
        super().handle_chain(queue_index, chain)


@pytest.fixture(autouse=True)
def server() -> str:
    """Who serves the queues: here the engine alone."""
    return "engine"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([at]) * SECTOR for at in range(SECTORS)))
    return path


def drive(image: Path, flags: int = os.O_RDWR, features: int = 0) -> tuple[Told, BlockDriver]:
    fd = os.open(image, flags)
    device = Told(BlockSpec(str(image)), fd)
    return device, BlockDriver(device, fd, device.features() | VERSION_1 | INDIRECT_DESC | features)


@pytest.fixture
def disk(image: Path) -> Iterator[BlockDriver]:
    _, disk = drive(image)
    yield disk
    disk.close()


def by_python(disk: BlockDriver) -> int:
    assert isinstance(disk.device, Told)
    return disk.device.by_python


@pytest.mark.parametrize("indirect", [False, True])
def test_reads_writes_and_flushes_are_the_engines(disk: BlockDriver, indirect: bool) -> None:
    data = os.urandom(2 * SECTOR)
    assert disk.request(OUT, 5, out=[data], indirect=indirect).status == OK
    assert disk.request(IN, 5, into=[SECTOR, SECTOR], indirect=indirect).data == data
    assert disk.request(FLUSH, 0, indirect=indirect).status == OK
    assert by_python(disk) == 0
    counters = disk.worker.counters
    assert (counters.requests, counters.errors) == (3, 0)
    assert counters.bytes_to_guest == 1 + 2 * SECTOR + 1 + 1
    assert counters.bytes_from_guest == 16 + 2 * SECTOR + 16 + 16


def test_everything_else_is_pythons(disk: BlockDriver) -> None:
    assert disk.request(GET_ID, 0, into=[20]).status == OK
    assert disk.request(DISCARD, 0, out=[struct.pack("<QII", 8, 8, 0)]).status == OK
    assert disk.request(IN, SECTORS, into=[SECTOR]).status == IOERR
    assert disk.request(IN, 0, into=[SECTOR - 1]).status == IOERR
    assert by_python(disk) == 4
    assert disk.request(IN, 1, into=[SECTOR]).data == b"\1" * SECTOR
    assert by_python(disk) == 4


def test_error_of_the_host_is_told_by_python(image: Path, lines: list[str]) -> None:
    _, disk = drive(image, os.O_RDONLY)  # against what its Spec says
    assert disk.request(OUT, 0, out=[bytes(SECTOR)]).status == IOERR
    assert by_python(disk) == 1
    assert lines == ["block queue 0: the image: Bad file descriptor"]
    disk.close()


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_queue_changes_hands_in_the_midst_of_its_work(image: Path, features: int) -> None:
    device, disk = drive(image, features=features)
    for turn in range(600):  # more than once around the ring
        sector = turn % SECTORS
        if turn % 7 == 3:
            device.command(SetLimits((None, None, None, (turn % 2) << 40, None, 1000)))
        if turn % 5 == 2:
            assert disk.worker.states()[0].next_used == turn & 0xFFFF
        if turn % 11 == 6:
            disk.worker.withhold_used()
            disk.worker.show_used()
        assert disk.request(IN, sector, into=[SECTOR]).data == bytes([sector]) * SECTOR
    assert 0 < device.by_python < 600
    disk.close()


def test_smaller_disk_is_smaller_for_the_engine_too(disk: BlockDriver) -> None:
    assert disk.request(IN, SECTORS - 1, into=[SECTOR]).status == OK
    disk.device.command(SetSize(SECTOR * (SECTORS // 2), False))
    assert disk.request(IN, SECTORS - 1, into=[SECTOR]).status == IOERR
    assert disk.request(IN, SECTORS // 2 - 1, into=[SECTOR]).status == OK


def is_mapped(address: int) -> bool:
    maps = Path("/proc/self/maps").read_text().splitlines()
    places = [line.partition(" ")[0].split("-") for line in maps if "crosvm_guest" in line]
    return any(int(start, 16) <= address < int(end, 16) for start, end in places)


def test_memory_stays_mapped_as_long_as_the_engine_has_it() -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    address = buffer_address(memory.mappings[0][1])
    engine = EngineMemory(memory)
    memory.close()
    assert is_mapped(address)
    del engine
    assert not is_mapped(address)


def test_dump_names_the_engine(disk: BlockDriver) -> None:
    disk.request(IN, 0, into=[SECTOR])
    server, position = disk.worker.positions()[0]
    assert server == "engine"
    assert position is not None
    assert (position.next_avail, position.next_used) == (1, 1)


def test_vmm_sees_that_limits_change_the_engine(image: Path) -> None:
    device, disk = drive(image)
    cells = disk.worker.counters.cells
    assert engine_of(cells, 0) == NATIVE
    for ops, engine in ((1 << 40, PYTHON), (0, NATIVE)):
        device.command(SetLimits((None, None, None, ops, None, 1000)))
        disk.worker.show_engines()
        assert engine_of(cells, 0) == engine
    disk.worker.stop_queue(0)
    assert engine_of(cells, 0) == PYTHON  # nobody: the vmm does not ask for a stopped queue
    disk.close()
