# SPDX-License-Identifier: BSD-3-Clause
"""Disks whose process is killed inside a turn of the engine: each request is answered once."""

from __future__ import annotations

import os
import struct
import tempfile

import pytest

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.queue import native
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide
from tests.support.killed import shared_state
from tests.support.killed_natively import CAN_TRACE, each_native_kill

pytestmark = [
    pytest.mark.usefixtures("every_line_is_expected"),
    pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here"),
    pytest.mark.skipif(not CAN_TRACE, reason="no numbers of system calls for this processor"),
]

SECTOR = 512
SECTORS = 64
IN, OUT, FLUSH = 0, 1, 4
# What kind, from which sector on, data to write, bytes to read. No two have a sector in common.
REQUESTS: tuple[tuple[int, int, list[bytes], int], ...] = (
    (OUT, 0, [b"a" * 2 * SECTOR], 0),
    (IN, 10, [], 2 * SECTOR),
    (FLUSH, 0, [], 0),
    (OUT, 3, [b"b" * SECTOR], 0),
    (IN, 63, [], SECTOR),
)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> str:
    """Who serves the queues: the engine, which does not watch them while nothing is there."""
    monkeypatch.setattr("devices.virtio.block.native.POLL_NS", 0)
    return "engine"


class Disk:
    """A disk whose processes come and go, with requests offered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            self.fd = os.dup(file.fileno())
        os.write(self.fd, b"".join(bytes([at]) * SECTOR for at in range(SECTORS)))
        if kind == "cold":
            os.fsync(self.fd)
        self.memory = GuestMemory.create([(0, 4 << 20)])
        self.driver = DriverSide(self._new(), self.memory, saved=shared_state())
        self.driver.start(size=32)
        queue = self.driver.queues[0]
        for kind_of_request, sector, out, into in REQUESTS:
            header = struct.pack("<IIQ", kind_of_request, 0, sector)
            queue.submit([header, *out], [into, 1] if into else [1])
        self.heads = list(queue.requests)
        self._ring = self.memory.view(queue.used_ring, 6 + 8 * queue.size)
        heap = queue._heap_start
        self._buffers = self.memory.view(heap, queue.allocate(0) - heap)

    def _new(self) -> Block:
        block = Block(BlockSpec("image"), self.fd, engine=True)
        assert block.native is not None
        if self.kind == "direct":
            block.native.cached = False
            block.native.start_threads(0)  # which changes the order as threads do
        return block

    def serve(self) -> None:
        if self.kind == "cold":
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.driver.kick(0)

    def take_over(self) -> None:
        self.driver.replace(self._new())

    def left(self) -> object:
        return (bytes(self._ring), bytes(self._buffers))

    def close(self) -> None:
        self._ring.release()
        self._buffers.release()
        self.driver.close()
        self.memory.close()
        os.close(self.fd)


def original(sector: int, count: int = 1) -> bytes:
    return b"".join(bytes([at]) * SECTOR for at in range(sector, sector + count))


ANSWERS = [b"", original(10, 2), b"", b"", original(63)]
IMAGE = b"a" * 2 * SECTOR + original(2) + b"b" * SECTOR + original(4, SECTORS - 4)


@pytest.mark.parametrize("kind", ["plain", "direct", "cold"])
def test_each_request_is_answered_once_wherever_the_engine_is_killed(kind: str) -> None:
    seen = set()
    for disk in each_native_kill(lambda: Disk(kind), Disk.serve):
        seen.add(disk.driver.queues[0].used_idx)
        disk.take_over()
        finished = disk.driver.queues[0].collect()
        assert [request.head for request, _, _ in finished] == disk.heads
        assert [used for _, used, _ in finished] == [1 + len(data) for data in ANSWERS]
        assert [data for _, _, data in finished] == [data + b"\0" for data in ANSWERS]
        assert os.pread(disk.fd, 1 << 20, 0) == IMAGE
        assert disk.driver.interrupted(0)
        disk.driver.kick(0)  # nothing is left
        assert disk.driver.queues[0].used_idx == len(REQUESTS)
    assert seen == set(range(len(REQUESTS) + 1))  # it was killed after each of them
