# SPDX-License-Identifier: BSD-3-Clause
"""virtio-mem, a driver written from virtio 1.3 §5.15, and a vmm that answers as the test says."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from devices.virtio.mem.device import Mem, MemSpec
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide
from tests.support.killed import shared_state

MIB = 1 << 20
BLOCK = 2 * MIB
BLOCKS = 8
HOT = 1 << 32

PLUG, UNPLUG, UNPLUG_ALL, STATE = range(4)
ACK, NACK, BUSY, ERROR = range(4)
PLUGGED, UNPLUGGED, MIXED = range(3)
INACCESSIBLE = 1 << 1
EVENT_IDX = 1 << 29


class Config(NamedTuple):
    block_size: int
    node_id: int
    addr: int
    region_size: int
    usable_region_size: int
    plugged_size: int
    requested_size: int


def request(kind: int, block: int = 0, count: int = 0, addr: int | None = None) -> bytes:
    addr = HOT + block * BLOCK if addr is None else addr
    return struct.pack("<H6xQH6x", kind, addr, count)


class MemRig(DriverSide):
    """A driver, the device, and the vmm's part of it."""

    def __init__(self, requested: int = BLOCKS * BLOCK, *, without: int = 0) -> None:
        memory = GuestMemory.create([(0, 4 * MIB)], hot_ranges=[(HOT, BLOCKS * BLOCK, BLOCK)])
        self.spec = MemSpec(requested)
        super().__init__(Mem(self.spec), memory, without=EVENT_IDX | without, saved=shared_state())
        (self.area,) = memory.hot_areas

    def close(self) -> None:
        super().close()
        self.memory.close()

    def config(self) -> Config:
        return Config(*struct.unpack("<QH6xQQQQQ", self.device.config()))

    def send(self, *parts: bytes, room: int = 10) -> None:
        self.queues[0].submit(list(parts), [room] if room else [])
        self.kick(0)

    def asked(self) -> list[tuple[int, int, int]]:
        asked, self.context.asked_blocks = self.context.asked_blocks, []
        return asked

    def carry_out(self, kind: int, first: int, count: int) -> None:
        """Do what the vmm does."""
        if kind == PLUG:
            self.area.show(first, count)
        else:
            self.area.hide(first, count)

    def answer(self, done: bool = True) -> None:
        """Answer as the vmm does, after it has done what it was asked for."""
        (change,) = self.asked()
        if done:
            self.carry_out(*change)
        self.context.on_blocks(done)

    def responses(self) -> list[tuple[int, int]]:
        found = []
        for _, _, data in self.queues[0].collect():
            kind, state = struct.unpack("<H6xH", data)
            found.append((kind, state))
        return found

    def response(self) -> int:
        ((kind, _),) = self.responses()
        return kind

    def do(self, kind: int, block: int = 0, count: int = 0) -> int:
        """Send a request that the vmm carries out; return the response."""
        self.send(request(kind, block, count))
        if self.context.asked_blocks:
            self.answer()
        return self.response()

    def allocated(self) -> int:
        return os.fstat(self.memory.fd).st_blocks * 512
