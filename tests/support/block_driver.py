# SPDX-License-Identifier: BSD-3-Clause
"""A block driver written from virtio 1.3 §5.2: it builds requests and reads their answers."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.queue.worker import QueueWorker
from disk.image import open_image
from sys_util.errors import ConfigError
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import DriverQueue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
NO_STATUS = 0xEE  # what the driver puts there before it asks
UNMAP = 1
SECTOR = 512

VERSION_1 = 1 << 32
INDIRECT_DESC = 1 << 28


class Answer(NamedTuple):
    status: int
    data: bytes
    used_len: int


def is_free(disk: Path) -> bool:
    """Return whether another VM could have the disk."""
    try:
        os.close(open_image(BlockSpec(str(disk))))
    except ConfigError:
        return False
    return True


def ranges(*segments: tuple[int, int, int]) -> bytes:
    """Return the payload of a discard: sector, number of sectors, flags."""
    return b"".join(struct.pack("<QII", *segment) for segment in segments)


class BlockDriver:
    """One guest with one disk. Sends a request, kicks, and takes the answer."""

    def __init__(
        self,
        device: Block,
        fd: int,
        features: int,
        hot_ranges: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.memory = GuestMemory.create([(0, 8 << 20)], hot_ranges=hot_ranges)
        self.device = device
        self.worker = QueueWorker(device, self.memory)
        device.count_in(self.worker.counters)
        self.queue = DriverQueue(self.memory, 256, heap=1 << 20)
        self._fd = fd
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        device.activate(features)
        activation = self.queue.activation(0, self._kick_fd, self._call_fd)
        self.worker.start_queue(activation, features)

    @classmethod
    def start(cls, spec: BlockSpec, *, without: int = 0) -> BlockDriver:
        """Open the image and drive it with every feature on offer but ``without``."""
        fd = open_image(spec)
        device = Block(spec, fd)
        return cls(device, fd, (device.features() | VERSION_1 | INDIRECT_DESC) & ~without)

    def close(self) -> None:
        for fd in (self._fd, self._kick_fd, self._call_fd):
            os.close(fd)
        self.worker.stop_queue(0)
        self.memory.close()

    def request(
        self,
        kind: int,
        sector: int,
        *,
        out: Sequence[bytes] = (),
        into: Sequence[int] = (),
        indirect: bool = False,
    ) -> Answer:
        """Send one request, laid out as Linux does: header, payload, status."""
        header = struct.pack("<IIQ", kind, 0, sector)
        return self.send([header, *out], [*into, 1], indirect=indirect)

    def raw_request(
        self,
        kind: int,
        sector: int,
        payload: bytes,
        *,
        header_cuts: Sequence[int],
        out_cuts: Sequence[int],
        into: Sequence[int],
    ) -> Answer:
        """Send one request in buffers of these sizes; the last of ``into`` has the status."""
        stream = struct.pack("<IIQ", kind, 0, sector) + payload
        out = []
        at = 0
        for length in (*header_cuts, *out_cuts):
            out.append(stream[at : at + length])
            at += length
        return self.send(out, into)

    def serve(self) -> None:
        """Kick, and let the device serve all that was submitted."""
        os.eventfd_write(self._kick_fd, 1)
        while self.worker.on_kick(0):
            pass

    def send(self, out: Sequence[bytes], into: Sequence[int], *, indirect: bool = False) -> Answer:
        self.queue.submit(out, into, indirect=indirect)
        os.eventfd_write(self._kick_fd, 1)
        self.worker.on_kick(0)
        ((_, used_len, data),) = self.queue.collect()
        if not data:
            return Answer(NO_STATUS, b"", used_len)
        return Answer(data[-1], data[:-1], used_len)
