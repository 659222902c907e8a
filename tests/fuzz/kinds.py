# SPDX-License-Identifier: BSD-3-Clause
"""One rig for each kind of device: the device, its driver, the host behind it."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from devices.virtio.balloon.device import Balloon, BalloonSpec
from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import AdjustTarget, Command, SetRequested, SetTarget, TellState
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.mem.device import Mem, MemSpec
from devices.virtio.queue.servers import ChainServer
from devices.virtio.rng.device import Rng, RngSpec
from devices.virtio.saved_state import PAGE_CELLS
from sys_util.facts import replace
from sys_util.guest_memory import GuestMemory
from tests.fuzz.messages import spoil_fields
from tests.fuzz.source import number, one_in, pick
from tests.support.device_context import DriverSide
from tests.support.stored import stored

if TYPE_CHECKING:
    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from devices.virtio.saved_state import SavedState
    from tests.fuzz.source import Source

    Request = tuple[list[bytes], list[int]]

MEMORY_BYTES = 4 << 20
HIGH = 0x1_0000_0000


def small_memory() -> GuestMemory:
    return GuestMemory.create([(0, MEMORY_BYTES), (HIGH, 0x10000)])


class Kind(Protocol):
    """A device kind under attack. One rig lives through many drivers."""

    side: DriverSide

    def request(self, source: Source, queue: int) -> Request:
        """Return a request that is nearly right: device-readable bytes, device-writable lengths."""
        ...

    def host_acts(self, source: Source) -> None:
        """Do something that processes of the host may do."""
        ...

    def restart(self, source: Source) -> None:
        """Let a new process take the device over, from one that may have left nonsense."""
        ...

    def serves(self) -> None:
        """Check that a well-behaved driver, which has just reset the device, is served."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def spoil_saved(source: Source, saved: SavedState) -> None:
    """Change what the last process left for the next one; sometimes there is nothing at all."""
    kind = source.below(4)
    if kind == 0:
        at = source.below(len(saved._cells))
        saved._cells[at] = number(source, 64)
    elif kind == 1:
        data = source.data(source.below(64))
        at = 8 * source.below(PAGE_CELLS - 8)
        saved._bytes[at : at + len(data)] = data
    elif kind == 2:
        fields = stored(saved) or {"x": 1}
        name = pick(source, tuple(fields))
        items: list[object] = [fields[name]]
        spoil_fields(source, items)
        with suppress(ValueError):  # more than there is room for
            saved.store(fields | {name: items[0] if items else None})


class Sink(SimpleDevice):
    """Read everything, write everything: the queue alone."""

    name = "sink"
    device_type = 63
    queue_sizes = (256, 8)
    seccomp_policy = "none"
    in_order = True
    gate = None
    LIMIT = 4096

    def features(self) -> int:
        return 0

    def config(self) -> bytes:
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Nothing is there."""

    def activate(self, features: int) -> None:
        """Nothing changes."""

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return ChainServer(queue, self)

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        data = chain.reader.read(min(self.LIMIT, chain.reader.remaining))
        chain.writer.write(data[: min(len(data), chain.writer.remaining)])
        tail = chain.writer.split_at(chain.writer.remaining // 2)
        tail.write(bytes(min(self.LIMIT, tail.remaining)))

    def reset(self) -> None:
        """Nothing is kept."""


class QueueKind:
    """The virtqueue with a device that does as little as can be."""

    def __init__(self, _source: Source) -> None:
        self.side = DriverSide(self.build(), small_memory())

    def build(self) -> VirtioDevice:
        """Return a device as its process makes it."""
        return Sink()

    def request(self, source: Source, queue: int) -> Request:
        return [source.data(source.below(40))], [source.below(40), source.below(8)]

    def host_acts(self, source: Source) -> None:
        """There is no host."""

    def restart(self, source: Source) -> None:
        spoil_saved(source, self.side.context.saved)
        self.side.replace(self.build())

    def serves(self) -> None:
        self.side.start(0, 1, size=8)
        for index in (0, 1):
            ring = self.side.queues[index]
            ring.submit([b"hello"], [5, 5])
            self.side.kick(index)
            ((_, used, data),) = ring.collect()
            assert (used, data[:5]) == (5, b"hello")

    def close(self) -> None:
        self.side.close()
        self.side.memory.close()


class RngKind(QueueKind):
    def build(self) -> Rng:
        return Rng(RngSpec())

    def request(self, source: Source, queue: int) -> Request:
        return [], [source.below(200)]

    def serves(self) -> None:
        self.side.start(size=4)
        self.side.queues[0].submit([], [64])
        self.side.kick(0)
        ((_, used, data),) = self.side.queues[0].collect()
        assert used == 64
        assert data != b"\xee" * 64


class BlockKind(QueueKind):
    """A disk of 64 sectors; read-only every other time, and then it must stay as it was."""

    SECTORS = 64
    TYPES = (0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 2, 3, 5, 0x8000_0000, 0xFFFF_FFFF)

    def __init__(self, source: Source) -> None:
        self._fd = os.memfd_create("image", os.MFD_CLOEXEC)
        self._read_only = one_in(source, 2)
        self._image = b"".join(bytes([at]) * 512 for at in range(self.SECTORS))
        os.write(self._fd, self._image)
        super().__init__(source)

    def build(self) -> Block:
        spec = BlockSpec("image", read_only=self._read_only, sparse=True)
        # Every chain is watched, which the engine knows nothing of.
        return Block(replace(spec, num_queues=2), self._fd, engine=False)

    def request(self, source: Source, queue: int) -> Request:
        kind = pick(source, self.TYPES)
        sector = number(source, 64) if one_in(source, 4) else source.below(self.SECTORS + 2)
        out = [struct.pack("<IIQ", kind, source.below(2), sector)]
        if kind in (11, 13):
            count = 1 + source.below(3)
            segments = [
                (source.below(70), number(source, 32), source.below(4)) for _ in range(count)
            ]
            out.append(b"".join(struct.pack("<QII", *segment) for segment in segments))
        elif kind == 1:
            out.append(source.data(512 * source.below(4)))
        into = [512 * (1 + source.below(4))] if kind in (0, 2, 3) else []
        return out, [*into, *([20] if kind == 8 else []), 1]

    def serves(self) -> None:
        self.side.start(0, 1, size=16)
        assert os.fstat(self._fd).st_size == 512 * self.SECTORS
        image = os.pread(self._fd, 1 << 20, 0)
        assert not self._read_only or image == self._image
        (capacity,) = struct.unpack_from("<Q", self.side.device.config())
        assert 0 < capacity <= self.SECTORS  # the last process may have left a smaller disk
        sector = min(5, capacity - 1)
        for index in (0, 1):
            self.side.queues[index].submit([struct.pack("<IIQ", 0, 0, sector)], [512, 1])
            self.side.kick(index)
            ((_, used, data),) = self.side.queues[index].collect()
            assert (used, data) == (513, image[sector * 512 :][:512] + b"\0")

    def close(self) -> None:
        super().close()
        os.close(self._fd)


class MemKind(QueueKind):
    """virtio-mem; the vmm carries out what it is asked for, or does not."""

    def __init__(self, _source: Source) -> None:
        self.block = 2 << 20
        memory = GuestMemory.create([(0, 4 << 20)], hot_ranges=[(HIGH, 6 * self.block, self.block)])
        self.side = DriverSide(self.build(), memory)

    def build(self) -> Mem:
        return Mem(MemSpec(5 << 21))

    def request(self, source: Source, _queue: int) -> Request:
        kind = source.below(5) if one_in(source, 2) else number(source, 16)
        addr = HIGH + source.below(8) * self.block if one_in(source, 2) else number(source, 64)
        count = source.below(8) if one_in(source, 2) else number(source, 16)
        return [struct.pack("<H6xQH6x", kind, addr, count)], [10]

    def host_acts(self, source: Source) -> None:
        context = self.side.context
        if one_in(source, 4):
            with suppress(CommandError):
                self.side.device.command(SetRequested(number(source, 24)))
        for kind, first, count in context.asked_blocks:
            done = not one_in(source, 4)
            (area,) = self.side.memory.hot_areas
            if done and kind == 0:
                area.show(first, count)
            elif done:
                area.hide(first, count)
            context.on_blocks(done)
        context.asked_blocks.clear()

    def serves(self) -> None:
        self.side.start(0, size=4)
        self.side.queues[0].submit([struct.pack("<H6xQH6x", 3, HIGH, 1)], [10])
        self.side.kick(0)
        ((_, used, data),) = self.side.queues[0].collect()
        assert (used, data[:8]) == (10, bytes(8))


class BalloonKind(QueueKind):
    """A balloon with every feature; pages of the rings may go away under the device."""

    def __init__(self, _source: Source) -> None:
        self.side = DriverSide(self.build(), GuestMemory.create([(0, 8 << 20), (HIGH, 0x10000)]))

    def build(self) -> Balloon:
        return Balloon(BalloonSpec(page_reporting=True))

    def request(self, source: Source, queue: int) -> Request:
        if queue == 2:
            stats = [
                struct.pack("<HQ", number(source, 16), number(source, 64))
                for _ in range(source.below(30))
            ]
            return [b"".join(stats)], []
        if queue >= 3:
            command = [struct.pack("<I", number(source, 32))] if one_in(source, 3) else []
            return command, [4096 * source.below(3)]
        pages = [
            source.below(6) if one_in(source, 20) else number(source, 32)
            for _ in range(source.below(40))
        ]
        return [struct.pack(f"<{len(pages)}I", *pages)], []

    def host_acts(self, source: Source) -> None:
        pages, refresh = number(source, 32), one_in(source, 2)
        wishes: tuple[Command, ...] = (SetTarget(pages), AdjustTarget(pages), TellState(refresh))
        self.side.device.command(pick(source, wishes))

    def serves(self) -> None:
        self.side.start(0, 1, size=4)
        page = (HIGH >> 12) + 3
        self.side.memory.write(HIGH + 0x3000, b"here")
        for index in (0, 1):
            self.side.queues[index].submit([struct.pack("<I", page)])
            self.side.kick(index)
            assert len(self.side.queues[index].collect()) == 1
        assert self.side.memory.read(HIGH + 0x3000, 4) == bytes(4)
