# SPDX-License-Identifier: BSD-3-Clause
"""What the engine serves, what it leaves to Python, and how a queue goes from one to the other."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import SetLimits, SetSize
from devices.virtio.counters import NATIVE, PYTHON, engine_of
from devices.virtio.queue import native
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
from tests.support.device_context import DriverSide
from tests.support.driver_queue import NEXT, WRITE, Desc

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


def test_buffer_in_a_block_that_has_gone_is_malformed_for_the_engine_too(
    image: Path, lines: list[str]
) -> None:
    hot, block = 1 << 32, 2 << 20
    fd = os.open(image, os.O_RDWR)
    device = Told(BlockSpec(str(image)), fd)
    disk = BlockDriver(device, fd, device.features() | VERSION_1, [(hot, 2 * block, block)])
    area = disk.memory.hot_areas[0]
    area.show(1, 1)
    buffer = hot + block
    table = {
        0: Desc(0x20_0000, 16, NEXT, 1),
        1: Desc(buffer, SECTOR, NEXT | WRITE, 2),
        2: Desc(0x20_0010, 1, WRITE),
    }
    disk.memory.write(0x20_0000, struct.pack("<IIQ", IN, 0, 7))
    disk.queue.offer(0, table)
    disk.serve()
    assert disk.memory.read(buffer, SECTOR) == b"\7" * SECTOR
    disk.memory.write(buffer, bytes(SECTOR))
    area.hide(1, 1)
    disk.queue.offer(0)
    disk.serve()
    assert lines == [f"block queue 0: chain 0: no guest memory at {buffer:#x}+0x200"]
    assert device.by_python == 0
    assert disk.queue.used_elem(1).len == 0
    area.show(1, 1)
    assert disk.memory.read(buffer, SECTOR) == bytes(SECTOR)
    disk.close()


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


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_transfers_of_a_turn_are_answered_in_their_order(image: Path, threads: int) -> None:
    """With no thread they are made in the opposite order."""
    device, disk = drive(image)
    assert device.native is not None
    device.native.start_threads(threads)
    offered = []
    for sector in (5, 60, 7, SECTORS, 1, 33, 2):  # one of them is not there
        header = struct.pack("<IIQ", IN, 0, sector)
        offered.append(disk.queue.submit([header], [SECTOR, 1]).head)
    disk.serve()
    answers = disk.queue.collect()
    assert [request.head for request, _, _ in answers] == offered
    assert [data[-1] for _, _, data in answers] == [OK, OK, OK, IOERR, OK, OK, OK]
    assert [data[0] for _, _, data in answers if data[-1] == OK] == [5, 60, 7, 1, 33, 2]
    assert device.by_python == 1
    disk.close()


def test_writes_and_a_flush_behind_them_keep_their_order(image: Path) -> None:
    device, disk = drive(image)
    assert device.native is not None
    device.native.start_threads(0)
    for kind, out in ((OUT, [b"A" * SECTOR]), (FLUSH, []), (OUT, [b"B" * SECTOR])):
        disk.queue.submit([struct.pack("<IIQ", kind, 0, 9), *out], [1])
    disk.serve()
    assert [data for _, _, data in disk.queue.collect()] == [bytes([OK])] * 3
    assert image.read_bytes()[9 * SECTOR : 10 * SECTOR] == b"B" * SECTOR  # a flush lay between
    assert device.by_python == 0
    disk.close()


def test_reads_that_miss_the_page_cache_are_answered_in_their_order(image: Path) -> None:
    data = os.urandom(8 << 20)
    image.write_bytes(data)
    device, disk = drive(image)
    with image.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sectors = [at * 389 % (len(data) // SECTOR) for at in range(60)]
    for sector in sectors:
        disk.queue.submit([struct.pack("<IIQ", IN, 0, sector)], [SECTOR, 1])
    disk.serve()
    wanted = [data[SECTOR * sector :][:SECTOR] + bytes([OK]) for sector in sectors]
    assert [got for _, _, got in disk.queue.collect()] == wanted
    assert device.by_python == 0
    disk.close()


def test_disk_serves_without_threads_where_the_host_refuses_them(
    image: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_count: int) -> None:
        raise RuntimeError("no thread")

    monkeypatch.setattr("engine.native.Pool", refuse)
    device, disk = drive(image)
    assert device.native is not None
    device.native.start_threads(16)
    assert lines == ["the host refuses 16 threads: this disk makes one transfer at a time"]
    assert disk.request(IN, 3, into=[SECTOR]).status == OK
    disk.close()


@pytest.fixture
def two_queues(image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DriverSide]:
    """A disk of two queues whose engine watches empty rings for as long as a test may take."""
    monkeypatch.setattr("devices.virtio.block.native.POLL_NS", 1_000_000)
    fd = os.open(image, os.O_RDWR)
    memory = GuestMemory.create([(0, 4 << 20)])
    side = DriverSide(Told(BlockSpec(str(image), num_queues=2), fd), memory)
    side.start()
    yield side
    side.close()
    memory.close()
    os.close(fd)


def kick_first_queue(side: DriverSide) -> None:
    for _ in range(16):  # it does not watch every time
        side.kick(0)


def test_queue_that_is_not_kicked_is_served_while_another_is_watched(
    two_queues: DriverSide,
) -> None:
    for turn in range(40):  # more than once around the ring
        two_queues.queues[1].submit([struct.pack("<IIQ", IN, 0, turn)], [SECTOR, 1])
        kick_first_queue(two_queues)
        ((_, _, data),) = two_queues.queues[1].collect()
        assert data == bytes([turn]) * SECTOR + b"\0"
    assert two_queues.worker.states()[1].next_used == 40


def test_request_that_another_queue_has_for_python_is_pythons(two_queues: DriverSide) -> None:
    queue = two_queues.queues[1]
    queue.submit([struct.pack("<IIQ", IN, 0, 3)], [SECTOR, 1])
    queue.submit([struct.pack("<IIQ", GET_ID, 0, 0)], [20, 1])
    kick_first_queue(two_queues)
    assert [data[0] for _, _, data in queue.collect()] == [3]
    assert os.eventfd_read(two_queues.kick_fd(1))  # the engine kicked it
    two_queues.kick(1)
    assert [len(data) for _, _, data in queue.collect()] == [21]


@pytest.mark.parametrize("how", ["stopped", "taken"])
def test_queue_that_the_engine_does_not_have_is_let_alone(two_queues: DriverSide, how: str) -> None:
    if how == "stopped":
        two_queues.worker.stop_queue(1)
    else:
        two_queues.worker.states()
    two_queues.queues[1].submit([struct.pack("<IIQ", IN, 0, 3)], [SECTOR, 1])
    kick_first_queue(two_queues)
    assert two_queues.queues[1].used_idx == 0
