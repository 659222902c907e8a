# SPDX-License-Identifier: BSD-3-Clause
"""Two disks, one served by the engine with Python behind it, one by Python alone: no difference.

Two drivers make the same decisions in memories of their own. After each turn both devices must have
left the same: rings, buffers, image, indices, counters, interrupts. Drivers may put buffers where
the rings are, so that it matters when something is written or asked. In one half of the lives a
turn is one chain, and nothing may differ. In the other half a turn is as long as ever, and
interrupts and the wish for kicks are not compared: the engine thinks of them between chains.

There are three kinds of disks: one in memory, which is served in the order of the ring; one whose
transfers a pool makes ("direct"); and a file that is not in the page cache ("cold"). For the last
two the chains of a long turn have nothing in common, since their order is anyone's choice.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Final

from devices.virtio.block import native
from devices.virtio.block.device import Block
from devices.virtio.block.native import NativeQueue
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import SetLimits, SetSize
from devices.virtio.features import VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue import chain_loop
from devices.virtio.queue.chain_loop import MAX_CHAINS_PER_TURN
from devices.virtio.queue.split_queue import SplitQueue
from disk.image import SECTOR_BYTES
from sys_util import log
from sys_util.errors import GuestError
from tests.fuzz.disk_requests import MAX_OFFERED, MISSING_SECTORS, SECTORS, ApartRing, MildRing
from tests.fuzz.kinds import small_memory
from tests.fuzz.ring_fuzzer import HEAP_GPA, OPTIONAL_FEATURES
from tests.fuzz.rings import HEAP_BYTES
from tests.fuzz.source import RandomSource, one_in, pick
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.counters import Counters
    from tests.fuzz.source import Source

SIZES = (1, 2, 8, 16, 32, 64, 64, 128)
MAX_TURNS = 300
RINGS_BYTES = 0x10000
# All of memory is compared once in so many episodes; what is not where it belongs stays there.
WHOLE_ONE_IN = 16
# At least so much of the chains that reach a device is served by the engine, and so much is not.
NATIVE_SHARE: Final = 0.5
PYTHON_SHARE: Final = 0.05
# Below so many chains nothing is said about shares.
FEW_CHAINS: Final = 1000
KINDS: Final = ("memory", "direct", "cold")
# Operations a second that nothing here reaches.
MANY = 1 << 40


class Disk:
    """One of the two, with its driver."""

    def __init__(self, source: Source, kind: str, *, engine: bool, exact: bool) -> None:
        self.cold = kind == "cold" and engine
        self.ring_type = MildRing if exact or kind == "memory" else ApartRing
        self.fd = unnamed_file() if self.cold else os.memfd_create("image", os.MFD_CLOEXEC)
        os.write(self.fd, b"".join(bytes([at]) * 512 for at in range(SECTORS)))
        os.fsync(self.fd)
        self.read_only = one_in(source, 8)
        direct = kind == "direct"
        spec = BlockSpec("image", read_only=self.read_only, num_queues=2, direct=direct)
        block = Block(spec, self.fd, engine=engine)
        if block.native is not None and spec.direct:
            block.native.start_threads(pick(source, (0, 1, 4)))
        self.side = DriverSide(block, small_memory())
        self.features = self.side.worker.offered_features
        self.rings: dict[int, MildRing] = {}
        self.broken: set[int] = set()

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
            size = size_for(source, side.features)
            self.try_to(index, lambda index=index, size=size: self.start(source, index, size))  # type: ignore[misc]

    def start(self, source: Source, index: int, size: int) -> None:
        """Start a queue whose driver is hostile."""
        self.side.start_queue(index, size=size)
        queue = self.side.queues[index]
        ring = self.ring_type(self.side.memory, queue, source, HEAP_GPA * (index + 1))
        if not self.side.features >> VIRTIO_RING_F_INDIRECT_DESC & 1:
            ring.TABLE_ONE_IN = 40
        ring.read_only = self.read_only
        self.rings[index] = ring

    def try_to(self, index: int, action: Callable[[], object]) -> None:
        """Do what may break a queue, as the device's process does."""
        try:
            action()
        except GuestError:
            self.broken.add(index)

    def resize(self, sectors: int) -> None:
        """Give the disk another size; one that only reads keeps its own."""
        if not self.read_only:
            self.side.device.command(SetSize(sectors * SECTOR_BYTES))

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
            sectors = SECTORS + MISSING_SECTORS - source.below(SECTORS) // pick(source, (1, 8))
            self.resize(sectors)
        elif action == 4:
            worker.states()
        elif action == 5:
            self.limit(one_in(source, 3) * MANY)
        else:
            for _ in range(1 + source.below(pick(source, (8, MAX_OFFERED)))):
                ring.offer(*ring.request())
            ring.publish()
        self.kick(index)

    def limit(self, operations: int) -> None:
        """Have so many operations a second: none is no limit, any is Python's to watch."""
        self.side.device.command(SetLimits((None, None, None, operations, None, 1000)))

    def kick(self, index: int) -> None:
        """Kick a queue and give it as many turns as it asks for."""
        os.eventfd_write(self.side.kick_fd(index), 1)
        if self.cold:
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
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
            "image": os.pread(self.fd, 1 << 18, 0),
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
        self.resize(SECTORS)
        self.side.reset()
        self.rings.clear()
        self.broken.clear()

    def close(self) -> None:
        self.side.close()
        self.side.memory.close()
        os.close(self.fd)


class Shares:
    """Who served how many of the chains of a pair that reached a device."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.native = 0
        self.by_python = 0  # on both sides
        self.counted = False  # whether chains are of this pair, now

    @property
    def chains(self) -> int:
        """How many reached each side: Python alone served as many as the engine with Python."""
        return (self.by_python + self.native) // 2

    def check(self) -> None:
        """Raise ``AssertionError`` if the engine served too little, or Python did."""
        share = self.native / max(1, self.chains)
        if self.chains >= FEW_CHAINS:
            told = f"of {self.chains} chains of a {self._what} the engine served {share:.0%}"
            assert NATIVE_SHARE <= share <= 1 - PYTHON_SHARE, told


class Differential:
    """The two of them. ``native`` of ``mutations`` chains were served by the engine."""

    def __init__(self, source: Source, kind: str = "memory") -> None:
        log.set_sink(lambda _level, _module, _text: None)
        seed = str(source.bits(64))
        self.shares = Shares(kind + " disk")
        self._turn = NativeQueue.turn
        self._exact = one_in(source, 2)
        self._limits = [(module, MAX_CHAINS_PER_TURN) for module in (chain_loop, native)]
        if self._exact:
            for module, _ in self._limits:
                setattr(module, "MAX_CHAINS_PER_TURN", 1)  # noqa: B010 - mypy knows a constant
        # The engine serves queues that nobody kicked, while it watches; Python cannot.
        self._poll_ns = native.POLL_NS
        setattr(native, "POLL_NS", 0)  # noqa: B010 - as above
        self._count_turns()
        self._add_used = SplitQueue.add_used
        self._publish_each()
        self._disks = [
            Disk(RandomSource(seed), kind, engine=engine, exact=self._exact)
            for engine in (True, False)
        ]

    def _count_turns(self) -> None:
        turn = NativeQueue.turn

        def counted(queue: NativeQueue, counters: Counters) -> int:
            before = counters.requests
            ended = turn(queue, counters)
            self.shares.native += counters.requests - before
            return ended

        setattr(NativeQueue, "turn", counted)  # noqa: B010 - mypy knows it as a method

    def _publish_each(self) -> None:
        """Show each chain at once, as the engine does: a buffer may be a ring that is written."""
        add_used = SplitQueue.add_used

        def add_and_publish(queue: SplitQueue, head: int, written: int) -> None:
            self.shares.by_python += self.shares.counted
            add_used(queue, head, written)
            queue.publish()

        setattr(SplitQueue, "add_used", add_and_publish)  # noqa: B010 - as above

    @property
    def mutations(self) -> int:
        """How many chains reached each."""
        return self.shares.chains

    def episode(self, source: Source) -> None:
        """Live through two drivers that are the same."""
        self.shares.counted = True
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
        self.shares.counted = False

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
        for disk in self._disks:
            disk.close()
        self._disks = []
        self.shares.check()


def size_for(source: Source, features: int) -> int:
    """Return the size of a queue; chains without indirect tables seldom fit into a small one."""
    size = pick(source, SIZES)
    indirect = features >> VIRTIO_RING_F_INDIRECT_DESC & 1
    return size if indirect or one_in(source, 8) else max(size, 16)


def unnamed_file() -> int:
    """Return an empty file on a file system that need not be in memory."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        return os.dup(file.fileno())
