# SPDX-License-Identifier: BSD-3-Clause
"""Disks and rng whose process is killed at each of its steps: requests run again change nothing."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import SetLimits, SetSize
from devices.virtio.rate_limiter import RateLimits
from devices.virtio.rng.device import Rng, RngSpec
from sys_util.facts import replace
from sys_util.guest_memory import GuestMemory
from tests.support.commands import limits_of
from tests.support.device_context import DriverSide
from tests.support.killed import each_kill, shared_state

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("every_line_is_expected")

SECTOR = 512
SECTORS = 64
IN, OUT, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 4, 11, 13
OPS = RateLimits(ops_size=2, ops_one_time_burst=3, ops_refill_time=100_000)


class Disk:
    """A disk of two queues, whose processes come and go."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("image", os.MFD_CLOEXEC)
        os.truncate(self.fd, SECTORS * SECTOR)
        self.spec = BlockSpec("image")
        self.memory = GuestMemory.create([(0, 4 << 20)])
        self.block = self._new()
        self.driver = DriverSide(self.block, self.memory, saved=shared_state())
        self.driver.start(size=64)

    def _new(self) -> Block:
        return Block(replace(self.spec, num_queues=2), self.fd)

    def take_over(self) -> None:
        self.block = self._new()
        self.driver.replace(self.block)

    def submit(self, kind: int, sector: int, *data: bytes, into: int = 0, queue: int = 0) -> None:
        header = struct.pack("<IIQ", kind, 0, sector)
        self.driver.queues[queue].submit([header, *data], [into, 1] if into else [1])

    def serve(self) -> None:
        self.driver.kick(0)

    def statuses(self, queue: int = 0) -> list[int]:
        return [data[-1] for _, _, data in self.driver.queues[queue].collect()]

    def image(self) -> bytes:
        return os.pread(self.fd, SECTORS * SECTOR, 0)

    def seen(self) -> object:
        return (self.driver.seen(), self.image())

    def close(self) -> None:
        self.driver.close()
        self.memory.close()
        os.close(self.fd)


def sectors(letter: bytes, count: int = 1) -> bytes:
    return letter * (count * SECTOR)


def overlapping_requests() -> Disk:
    """Offer writes, zeros and holes over each other, whose order matters."""
    disk = Disk()
    disk.submit(OUT, 0, sectors(b"a", 8))
    disk.submit(WRITE_ZEROES, 0, struct.pack("<QII", 2, 2, 0))
    disk.submit(OUT, 3, sectors(b"b", 2))
    disk.submit(DISCARD, 0, struct.pack("<QII", 6, 2, 0))
    disk.submit(FLUSH, 0)
    disk.submit(OUT, 7, sectors(b"c"))
    disk.submit(IN, 2, into=6 * SECTOR)
    return disk


def test_requests_that_run_again_leave_the_same_disk() -> None:
    wanted = sectors(b"a", 2) + bytes(SECTOR) + sectors(b"b", 2) + sectors(b"a") + bytes(SECTOR)
    wanted += sectors(b"c")
    for disk in each_kill(overlapping_requests, Disk.serve):
        disk.take_over()
        finished = disk.driver.queues[0].collect()
        assert [data[-1] for _, _, data in finished] == [0] * 7
        assert finished[-1][2][:-1] == wanted[2 * SECTOR :]
        assert disk.image() == wanted.ljust(SECTORS * SECTOR, b"\0")


def test_answer_is_given_once_in_the_order_of_the_requests() -> None:
    for disk in each_kill(overlapping_requests, Disk.serve):
        heads = list(disk.driver.queues[0].requests)
        disk.take_over()
        assert [request.head for request, _, _ in disk.driver.queues[0].collect()] == heads
        assert disk.driver.interrupted(0)


def shown(disk: Disk) -> int:
    """Return how many sectors the driver is shown."""
    return int.from_bytes(disk.block.config()[:8], "little")


def test_disk_that_shrinks_is_never_larger_again() -> None:
    def resize(disk: Disk) -> None:
        disk.block.command(SetSize(32 * SECTOR))

    found = []
    for disk in each_kill(Disk, resize):
        disk.take_over()
        found.append(shown(disk))
    assert found == sorted(found, reverse=True)
    assert set(found) == {SECTORS, 32}


def test_disk_whose_image_was_cut_can_grow_again() -> None:
    def make() -> Disk:
        disk = Disk()
        for _ in range(2):
            disk.block.command(SetSize(32 * SECTOR))
            os.truncate(disk.fd, 32 * SECTOR)
        os.truncate(disk.fd, 128 * SECTOR)
        return disk

    def resize(disk: Disk) -> None:
        disk.block.command(SetSize(128 * SECTOR))

    for disk in each_kill(make, resize):
        disk.take_over()
        assert shown(disk) == 128


def test_disk_is_never_larger_than_its_image(lines: list[str]) -> None:
    disk = Disk()
    os.truncate(disk.fd, 16 * SECTOR)
    disk.take_over()
    assert shown(disk) == 16
    disk.submit(OUT, 16, sectors(b"x"))
    disk.serve()
    assert disk.statuses() == [1]
    assert os.fstat(disk.fd).st_size == 16 * SECTOR
    assert lines == ["block queue 0: 512 bytes at sector 0x10 leave the disk"]
    lines.clear()
    disk.close()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"limits": None, "capacity_sectors": 8, "image_sectors": 8},
        {"limits": [0] * 5, "capacity_sectors": 8, "image_sectors": 8},
        {"limits": [0, 0, 0, 0, 0, "x"], "capacity_sectors": 8, "image_sectors": 8},
        {"limits": [0, 0, 0, 0, 0, True], "capacity_sectors": 8, "image_sectors": 8},
        {"limits": [-1, 0, 0, 0, 0, 0], "capacity_sectors": 8, "image_sectors": 8},
        {"limits": [0, 5, 0, 0, 0, 0], "capacity_sectors": 8, "image_sectors": 8},
        {"limits": [0] * 6},
        {"limits": [0] * 6, "capacity_sectors": 8},
        {"limits": [0] * 6, "capacity_sectors": 0, "image_sectors": 8},
        {"limits": [0] * 6, "capacity_sectors": -8, "image_sectors": 8},
        {"limits": [0] * 6, "capacity_sectors": "8", "image_sectors": 8},
        {"limits": [0] * 6, "capacity_sectors": 8.0, "image_sectors": 8},
    ],
)
def test_nonsense_of_the_last_process_is_one_line_and_no_more(
    fields: dict[str, object], lines: list[str]
) -> None:
    disk = Disk()
    disk.driver.context.saved.store(fields)
    disk.take_over()
    (line,) = lines
    assert "saved state is not used" in line
    lines.clear()
    assert shown(disk) == SECTORS
    disk.submit(OUT, 0, sectors(b"x"))
    disk.serve()
    assert disk.statuses() == [0]
    disk.close()


def limited(build: Callable[[], Rng]) -> DriverSide:
    side = DriverSide(build(), GuestMemory.create([(0, 4 << 20)]), saved=shared_state())
    side.start()
    return side


BUILDERS = [
    pytest.param(lambda: Rng(RngSpec()), id="rng"),
    pytest.param(lambda: Rng(RngSpec(limits=RateLimits(bw_size=9, bw_refill_time=9))), id="given"),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_limits_that_were_changed_stay(build: Callable[[], Rng]) -> None:
    def make() -> DriverSide:
        return limited(build)

    def limit(side: DriverSide) -> None:
        side.device.command(SetLimits(tuple(OPS)))

    found = []
    for side in each_kill(make, limit):
        side.replace(build())
        found.append(limits_of(side.device).ops_size)
        side.memory.close()
    assert found[0] == 0
    assert found[-1] == 2
    assert found == sorted(found)


def test_new_process_has_no_new_tokens() -> None:
    side = limited(lambda: Rng(RngSpec(limits=OPS)))
    for _ in range(5):
        side.queues[0].submit(into=[8])
    side.kick(0)
    assert len(side.queues[0].collect()) == 5  # the burst, and the bucket
    for _ in range(3):
        side.replace(Rng(RngSpec(limits=OPS)))
        side.queues[0].submit(into=[8])
        side.kick(0)
        assert side.queues[0].collect() == []
    side.close()
    side.memory.close()


def test_randomness_fills_every_buffer_once() -> None:
    def make() -> DriverSide:
        side = limited(lambda: Rng(RngSpec()))
        for _ in range(3):
            side.queues[0].submit(into=[32])
        return side

    for side in each_kill(make, lambda side: side.kick(0)):
        side.replace(Rng(RngSpec()))
        finished = side.queues[0].collect()
        assert [used for _, used, _ in finished] == [32] * 3
        assert len({data for _, _, data in finished} | {b"\xee" * 32}) == 4
        side.memory.close()
