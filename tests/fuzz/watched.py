# SPDX-License-Identifier: BSD-3-Clause
"""A split queue under observation, and a second opinion on what a chain is.

``reference_walk`` is written from virtio 1.3 §2.7 and from the limits that our documentation names,
not from our code: the two must agree on every chain that a fuzzer makes up.
"""

from __future__ import annotations

import struct
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from devices.virtio.features import VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue import split_queue as queue_module
from devices.virtio.queue import worker as worker_module
from devices.virtio.queue.chain import ChainError, Reader
from devices.virtio.queue.split_queue import SplitQueue
from sys_util.linux import buffer_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.virtio.backend import QueueActivation
    from devices.virtio.queue.chain import DescriptorChain
    from sys_util.guest_memory import GuestMemory, MemoryRegion

NEXT, WRITE, INDIRECT = 1, 2, 4
MAX_INDIRECT = 1024
MAX_BYTES = 1 << 32
_DESC = struct.Struct("<QIHH")


class Part(NamedTuple):
    """One buffer of a chain, by its guest-physical address."""

    gpa: int
    length: int
    writable: bool


class Table(NamedTuple):
    """Descriptors at ``gpa``, of which a walk may visit ``left``."""

    gpa: int
    length: int
    left: int


def reference_walk(
    memory: GuestMemory, layout: QueueActivation, head: int, *, indirect: bool
) -> list[Part] | None:
    """Return the buffers of the chain at ``head``, or ``None`` if it is malformed."""
    table, at, nested = Table(layout.desc_table, layout.size, layout.size), head, False
    parts: list[Part] = []
    while True:
        if at >= table.length or not table.left:
            return None
        table = table._replace(left=table.left - 1)
        addr, length, flags, following = _DESC.unpack(memory.read(table.gpa + 16 * at, 16))
        if flags & INDIRECT:
            bad_length = not 16 <= length <= 16 * 32768 or length % 16
            if (
                not indirect
                or nested
                or flags & NEXT
                or bad_length
                or not _is(memory, addr, length)
            ):
                return None
            nested = True
            table, at = Table(addr, length // 16, max(layout.size, MAX_INDIRECT)), 0
            continue
        if length and not _is(memory, addr, length):
            return None
        parts.append(Part(addr, length, bool(flags & WRITE)))
        if not flags & NEXT:
            break
        at = following
    directions = [part.writable for part in parts]
    if directions != sorted(directions) or sum(part.length for part in parts) > MAX_BYTES:
        return None
    return [part for part in parts if part.length]


def _is_there(memory: GuestMemory, region: MemoryRegion, gpa: int, length: int) -> bool:
    """Return whether all blocks are there now, by the table of a region that has one."""
    if not region.block_bytes:
        return True
    (area,) = memory.hot_areas
    offsets = range(gpa - region.gpa, gpa - region.gpa + max(length, 1))
    numbers = range(offsets[0] // region.block_bytes, offsets[-1] // region.block_bytes + 1)
    return all(area.blocks[number] for number in numbers)


def _is(memory: GuestMemory, gpa: int, length: int) -> bool:
    return any(
        region.gpa <= gpa
        and gpa + length <= region.gpa + region.size_bytes
        and _is_there(memory, region, gpa, length)
        for region in memory.regions
    )


class Tally:
    """What all watched queues did since the last look."""

    def __init__(self) -> None:
        self.pops = 0
        self.chains = 0
        self.malformed = 0


TALLY = Tally()


class WatchedQueue(SplitQueue):
    """A queue that holds its device to the rules: each chain back once, in order, as it was."""

    second_opinion = True

    def __init__(self, memory: GuestMemory, layout: QueueActivation, features: int) -> None:
        super().__init__(memory, layout, features)
        self._layout = layout
        self._uses_indirect = bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1)
        self._bases = [
            (buffer_address(memoryview(mapping)), region) for region, mapping in memory.mappings
        ]
        self.outstanding: deque[tuple[int, int]] = deque()  # head, writable bytes

    def pop(self) -> DescriptorChain | None:
        TALLY.pops += 1
        try:
            chain = super().pop()
        except ChainError as error:
            TALLY.malformed += 1
            self.outstanding.append((error.head, 0))
            sound = self.second_opinion and self._expect(error.head) is not None
            if sound:
                raise AssertionError("a sound chain was refused") from error
            raise
        if chain is not None:
            TALLY.chains += 1
            self.outstanding.append((chain.head, chain.writer.remaining))
            for stream in (chain.reader, chain.writer):
                there = sum(map(len, stream.iovecs(stream.remaining)))
                assert there == stream.remaining, f"{stream.remaining} bytes, {there} are there"
            if self.second_opinion:
                assert self._parts(chain) == self._expect(chain.head)
        return chain

    def unpop(self, *, idle: bool = False) -> None:
        super().unpop(idle=idle)
        self.outstanding.pop()

    def add_used(self, head: int, written: int) -> None:
        assert self.outstanding, f"chain {head} came back, and none was out"
        taken, writable = self.outstanding.popleft()
        assert head == taken, f"chain {head} came back before {taken}"
        assert 0 <= written <= writable, f"{written} bytes in {writable}"
        super().add_used(head, written)
        state = self.state()
        assert (state.next_avail - state.next_used) & 0xFFFF == len(self.outstanding)

    def _expect(self, head: int) -> list[Part] | None:
        return reference_walk(self._memory, self._layout, head, indirect=self._uses_indirect)

    def _parts(self, chain: DescriptorChain) -> list[Part]:
        reader, writer = chain.reader, chain.writer
        return [
            Part(self._gpa(view), len(view), writable)
            for stream, writable in ((reader, False), (writer, True))
            for view in stream.iovecs(stream.remaining)
        ]

    def _gpa(self, view: memoryview) -> int:
        address = buffer_address(view)
        for base, region in self._bases:
            if base <= address < base + region.size_bytes:
                return region.gpa + address - base
        raise AssertionError("a buffer outside guest memory")


@contextmanager
def watching() -> Iterator[None]:
    """Let every queue that a worker starts be a watched one."""
    setattr(worker_module, "SplitQueue", WatchedQueue)  # noqa: B010 - mypy knows it as a class
    try:
        yield
    finally:
        setattr(worker_module, "SplitQueue", SplitQueue)  # noqa: B010 - mypy knows it as a class


@contextmanager
def changing_memory(scribble: Callable[[memoryview], None]) -> Iterator[None]:
    """Change what the device has read, right after it read it, as a second vCPU would.

    Descriptors and what ``Reader`` copies: whoever reads a field twice gets two values.
    """
    unpack, read, unpack_struct = queue_module._UNPACK_DESC, Reader.read, Reader.unpack

    def unpack_once(table: memoryview, at: int) -> tuple[int, ...]:
        fields = unpack(table, at)
        scribble(table[at : at + 16])
        return fields

    def read_once(self: Reader, length: int) -> bytes:
        source = list(self._segments[:4])
        data = read(self, length)
        for segment in source:
            scribble(segment[:length])
        return data

    def unpack_struct_once(self: Reader, layout: struct.Struct) -> tuple[int, ...]:
        source = list(self._segments[:1])
        fields = unpack_struct(self, layout)
        for segment in source:
            scribble(segment[: layout.size])
        return fields

    _patch(unpack_once, read_once, unpack_struct_once)
    WatchedQueue.second_opinion = False
    try:
        yield
    finally:
        WatchedQueue.second_opinion = True
        _patch(unpack, read, unpack_struct)


def _patch(unpack: object, read: object, unpack_struct: object) -> None:
    setattr(queue_module, "_UNPACK_DESC", unpack)  # noqa: B010 - a constant, but for us
    setattr(Reader, "read", read)  # noqa: B010 - mypy knows it as a method
    setattr(Reader, "unpack", unpack_struct)  # noqa: B010 - mypy knows it as a method
