# SPDX-License-Identifier: BSD-3-Clause
"""Two disks, one served by the engine with Python behind it, one by Python alone: no difference.

Two drivers make the same decisions in memories of their own. After each turn both devices must have
left the same: rings, buffers, image, indices, counters, interrupts. Drivers may put buffers where
the rings are, so that it matters when something is written or asked. In one half of the lives a
turn is one chain, and nothing may differ. In the other half a turn is as long as ever, and
interrupts and the wish for kicks are not compared: the engine thinks of them between chains.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from devices.virtio import device
from devices.virtio.block import native
from devices.virtio.block.device import Block
from devices.virtio.block.image import BlockSpec
from devices.virtio.block.native import NativeQueue
from devices.virtio.commands import SetLimits
from devices.virtio.device import MAX_CHAINS_PER_TURN
from devices.virtio.queue.split_queue import SplitQueue
from sys_util import log
from sys_util.errors import GuestError
from tests.fuzz.kinds import small_memory
from tests.fuzz.ring_fuzzer import HEAP_GPA, OPTIONAL_FEATURES
from tests.fuzz.rings import HEAP_BYTES, HostileRing
from tests.fuzz.source import RandomSource, number, one_in, pick
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.counters import Counters
    from tests.fuzz.source import Source

SECTORS = 64
SIZES = (1, 2, 8, 16, 32, 64, 64, 128)
# Reads and writes most of the time, and everything else.
TYPES = (*(0,) * 6, *(1,) * 6, 4, 4, 8, 11, 13, 2, 0x8000_0000)
MAX_TURNS = 300
RINGS_BYTES = 0x10000
# All of memory is compared once in so many episodes; what is not where it belongs stays there.
WHOLE_ONE_IN = 16
# At least one in so many chains is served by the engine; the others are nonsense, or Python's.
NATIVE_ONE_IN = 25
# Operations a second that nothing here reaches.
MANY = 1 << 40


class MildRing(HostileRing):
    """Most of it makes sense, or the engine would never have anything to do."""

    SPOILT_ONE_IN = 4
    NONSENSE_ONE_IN = 40


class Disk:
    """One of the two, with its driver."""

    def __init__(self, source: Source, *, engine: bool) -> None:
        self.fd = os.memfd_create("image", os.MFD_CLOEXEC)
        os.write(self.fd, b"".join(bytes([at]) * 512 for at in range(SECTORS)))
        spec = BlockSpec("image", read_only=one_in(source, 4), num_queues=2)
        block = Block(spec, self.fd, engine=engine)
        self.side = DriverSide(block, small_memory())
        self.features = self.side.worker.offered_features
        self.rings: dict[int, MildRing] = {}
        self.broken: set[int] = set()
        self.mutations = 0

    def begin(self, source: Source) -> None:
        """Be a new driver."""
        side = self.side
        side.features = self.features
        for feature in OPTIONAL_FEATURES:
            if one_in(source, 3):
                side.features &= ~feature
        if one_in(source, 3):
            side.features &= ~(1 << 9)  # each write is on stable storage
        side.device.activate(side.features)
        for index in (0, 1):
            size = pick(source, SIZES)
            self.try_to(index, lambda index=index, size=size: self.start(source, index, size))  # type: ignore[misc]

    def start(self, source: Source, index: int, size: int) -> None:
        """Start a queue whose driver is hostile."""
        self.side.start_queue(index, size=size)
        queue = self.side.queues[index]
        self.rings[index] = MildRing(self.side.memory, queue, source, HEAP_GPA * (index + 1))

    def try_to(self, index: int, action: Callable[[], object]) -> None:
        """Do what may break a queue, as the device's process does."""
        try:
            action()
        except GuestError:
            self.broken.add(index)

    def step(self, source: Source) -> None:
        """Do one of the things that drivers do, and the vmm."""
        index = source.below(2)
        if index not in self.rings:
            return
        ring, worker = self.rings[index], self.side.worker
        action = source.below(40)
        if action == 0:
            ring.garbage()
        elif action == 1:
            ring.scribble_used()
            worker.stop_queue(index)
            self.broken.discard(index)
            self.try_to(index, lambda: self.side.start_queue(index, resume=True))
        elif action == 2:
            worker.pause()
            self.kick(index)
            worker.resume()
        elif action == 3:
            sectors = 1 + source.below(SECTORS)
            self.side.device._resize(sectors)  # type: ignore[attr-defined]
        elif action == 4:
            worker.states()
        elif action == 5:
            self.limit(source.below(2) * MANY)
        else:
            for _ in range(1 + source.below(8)):
                ring.offer(*request(source))
                self.mutations += 1
            ring.publish()
        self.kick(index)

    def limit(self, operations: int) -> None:
        """Have so many operations a second: none is no limit, any is Python's to watch."""
        self.side.device.command(SetLimits((None, None, None, operations, None, 1000)))

    def kick(self, index: int) -> None:
        """Kick a queue and give it as many turns as it asks for."""
        os.eventfd_write(self.side._kicks[index], 1)
        for _ in range(MAX_TURNS):
            try:
                if not self.side.worker.on_kick(index):
                    return
            except GuestError:
                self.broken.add(index)
                return
        raise AssertionError("turns without an end")

    def left(self, *, exact: bool) -> dict[str, object]:
        """Return what a turn leaves, but the memory."""
        counters = self.side.worker.counters
        return {
            "image": os.pread(self.fd, 1 << 20, 0),
            "states": self.side.worker.states(),
            "broken": set(self.broken),
            "interrupted": self.interrupted() if exact else [],
            "counted": (counters.requests, counters.errors, counters.kicks),
            "bytes": (counters.bytes_from_guest, counters.bytes_to_guest),
        }

    def interrupted(self) -> list[bool]:
        """Return which queues were. For one that broke in a turn Python leaves that to the vmm."""
        seen = {index: self.side.interrupted(index) for index in self.side.queues}
        return [told for index, told in seen.items() if index not in self.broken]

    def forget_wishes(self) -> None:
        """Blank the flags of the used rings, where the device asks for kicks."""
        for queue in self.side.queues.values():
            self.side.memory.write(queue.used_ring, bytes(2))

    def memory(self, *, whole: bool) -> list[bytes]:
        """Return guest memory, or the places where something is meant to happen."""
        memory = self.side.memory
        if whole:
            return [memory.read(region.gpa, region.size_bytes) for region in memory.regions]
        places = [(0, RINGS_BYTES), (HEAP_GPA, HEAP_BYTES), (2 * HEAP_GPA, HEAP_BYTES)]
        return [memory.read(gpa, length) for gpa, length in places]

    def end(self) -> None:
        """Reset the device."""
        self.limit(0)
        self.side.reset()
        self.rings.clear()
        self.broken.clear()

    def close(self) -> None:
        self.side.close()
        self.side.memory.close()
        os.close(self.fd)


class Differential:
    """The two of them. ``native`` of ``mutations`` chains were served by the engine."""

    def __init__(self, source: Source) -> None:
        log.set_sink(lambda _level, _module, _text: None)
        seed = str(source.bits(64))
        self.native = 0
        self._turn = NativeQueue.turn
        self._exact = one_in(source, 2)
        self._limits = [(module, MAX_CHAINS_PER_TURN) for module in (device, native)]
        if self._exact:
            for module, _ in self._limits:
                setattr(module, "MAX_CHAINS_PER_TURN", 1)  # noqa: B010 - mypy knows a constant
        # The engine serves queues that nobody kicked, while it watches; Python cannot.
        self._poll_ns = native.POLL_NS
        setattr(native, "POLL_NS", 0)  # noqa: B010 - as above
        self._count_turns()
        self._add_used = SplitQueue.add_used
        self._publish_each()
        self._disks = [Disk(RandomSource(seed), engine=engine) for engine in (True, False)]

    def _count_turns(self) -> None:
        turn = NativeQueue.turn

        def counted(queue: NativeQueue, counters: Counters) -> int:
            before = counters.requests
            ended = turn(queue, counters)
            self.native += counters.requests - before
            return ended

        setattr(NativeQueue, "turn", counted)  # noqa: B010 - mypy knows it as a method

    def _publish_each(self) -> None:
        """Show each chain at once, as the engine does: a buffer may be a ring that is written."""
        add_used = SplitQueue.add_used

        def add_and_publish(queue: SplitQueue, head: int, written: int) -> None:
            add_used(queue, head, written)
            queue.publish()

        setattr(SplitQueue, "add_used", add_and_publish)  # noqa: B010 - as above

    @property
    def mutations(self) -> int:
        """How many chains were offered to each."""
        return self._disks[0].mutations

    def episode(self, source: Source) -> None:
        """Live through two drivers that are the same."""
        seed = str(source.bits(64))
        sources = [RandomSource(seed), RandomSource(seed)]
        self._both(sources, Disk.begin)
        for _ in range(2 + source.below(8)):
            self._both(sources, Disk.step)
            by_engine, by_python = (disk.left(exact=self._exact) for disk in self._disks)
            differing = [name for name in by_engine if by_engine[name] != by_python[name]]
            assert not differing, [(by_engine[name], by_python[name]) for name in differing]
        whole = one_in(source, WHOLE_ONE_IN)
        if not self._exact:
            for disk in self._disks:
                disk.forget_wishes()
        engine_memory, python_memory = (disk.memory(whole=whole) for disk in self._disks)
        assert engine_memory == python_memory, "the memories differ"
        for disk in self._disks:
            disk.end()

    def _both(self, sources: list[RandomSource], act: Callable[[Disk, Source], None]) -> None:
        for disk, source in zip(self._disks, sources, strict=True):
            act(disk, source)

    def close(self) -> None:
        """Give everything back."""
        setattr(NativeQueue, "turn", self._turn)  # noqa: B010 - as above
        setattr(SplitQueue, "add_used", self._add_used)  # noqa: B010 - as above
        for module, limit in self._limits:
            setattr(module, "MAX_CHAINS_PER_TURN", limit)  # noqa: B010 - as above
        setattr(native, "POLL_NS", self._poll_ns)  # noqa: B010 - as above
        log.set_sink(log.stderr_sink)
        offered = self.mutations
        for disk in self._disks:
            disk.close()
        self._disks = []
        assert self.native * NATIVE_ONE_IN >= offered, "the engine serves next to nothing"


def request(source: Source) -> tuple[list[bytes], list[int]]:
    """Return a request of a disk that is right, or nearly."""
    kind = pick(source, TYPES)
    sector = number(source, 64) if one_in(source, 8) else source.below(SECTORS + 2)
    out = [struct.pack("<IIQ", kind, source.below(2), sector)]
    if kind in (11, 13):
        out.append(struct.pack("<QII", source.below(70), number(source, 32), source.below(4)))
    elif kind == 1:
        out.append(source.data(512 * source.below(5)))
    into = [512 * source.below(5)] if kind in (0, 2) else []
    if one_in(source, 20):
        into.insert(0, 0)
    return out, [*into, *([20] if kind == 8 else []), 1]
