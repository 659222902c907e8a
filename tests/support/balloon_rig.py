# SPDX-License-Identifier: BSD-3-Clause
"""A balloon and a driver written from virtio 1.3 §5.5, in a guest whose pages can be counted."""

from __future__ import annotations

import os
import struct

from devices.virtio.balloon.device import (
    VIRTIO_BALLOON_F_FREE_PAGE_HINT,
    VIRTIO_BALLOON_F_PAGE_POISON,
    VIRTIO_BALLOON_F_REPORTING,
    VIRTIO_BALLOON_F_STATS_VQ,
    Balloon,
    BalloonSpec,
)
from devices.virtio.commands import BalloonState, Command
from sys_util.guest_memory import GuestMemory
from tests.support.commands import ask_balloon
from tests.support.device_context import DriverSide
from tests.support.driver_queue import NEXT, WRITE, Desc

PAGE = 4096
MIB = 1 << 20
GUEST_BYTES = 16 * MIB
HIGH = 1 << 32
POOL = 8 * MIB  # free for the tests: queues and buffers are below
POOL_PFN = POOL // PAGE

HINT = 1 << VIRTIO_BALLOON_F_FREE_PAGE_HINT
STATS_VQ = 1 << VIRTIO_BALLOON_F_STATS_VQ
REPORTS = 1 << VIRTIO_BALLOON_F_REPORTING
POISON = 1 << VIRTIO_BALLOON_F_PAGE_POISON
NO_EVENT_IDX = 1 << 29


class BalloonRig(DriverSide):
    """A balloon with its driver."""

    def __init__(self, spec: BalloonSpec, *, without: int = 0) -> None:
        memory = GuestMemory.create([(0, GUEST_BYTES), (HIGH, MIB)])
        super().__init__(Balloon(spec), memory, without=NO_EVENT_IDX | without)

    def close(self) -> None:
        super().close()
        self.memory.close()

    def fill_pool(self, pages: int = 64) -> None:
        self.memory.write(POOL, b"\xab" * (pages * PAGE))

    def allocated(self) -> int:
        return os.fstat(self.memory.fd).st_blocks * 512 // PAGE

    def send(self, queue: int, *data: bytes) -> None:
        self.queues[queue].submit(list(data))
        self.kick(queue)

    def send_pages(self, queue: int, *pfns: int) -> None:
        self.send(queue, struct.pack(f"<{len(pfns)}I", *pfns))

    def used(self, queue: int) -> list[int]:
        return [used for _, used, _ in self.queues[queue].collect()]

    def show(self, queue: int, *pages: tuple[int, int], flags: int = WRITE) -> None:
        """Offer pages themselves as buffers: address and length of each."""
        last = len(pages) - 1
        table = {
            at: Desc(gpa, length, flags | (NEXT if at < last else 0), at + 1)
            for at, (gpa, length) in enumerate(pages)
        }
        self.queues[queue].offer(0, table)
        self.kick(queue)
        assert [tuple(used) for used in self.queues[queue].take_used()] == [(0, 0)]

    def config(self) -> tuple[int, int, int, int]:
        pages, actual, cmd_id, poison = struct.unpack("<IIII", self.device.config())
        return pages, actual, cmd_id, poison

    def ask(self, command: Command) -> BalloonState:
        return ask_balloon(self.device, command)


def stat(tag: int, value: int) -> bytes:
    return struct.pack("<HQ", tag, value)
