# SPDX-License-Identifier: BSD-3-Clause
"""A driver without any sense of duty: requests that nearly make sense, in rings that nearly do."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.fuzz.source import EDGES, number, one_in, pick, spoil
from tests.fuzz.watched import INDIRECT, NEXT, WRITE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sys_util.guest_memory import GuestMemory
    from tests.fuzz.source import Source
    from tests.support.driver_queue import DriverQueue

_DESC = struct.Struct("<QIHH")
HEAP_BYTES = 0x10000
# Chains that ask for gigabytes cost much and find little: one in so many.
FLOOD_ONE_IN = 300
MAX_CHAIN = 20


class HostileRing:
    """Write one queue's structures. ``mutations`` counts every change of what would be right."""

    # One chain in so many is spoilt, up to three times; one index in so many is nonsense.
    SPOILT_ONE_IN = 1
    NONSENSE_ONE_IN = 12
    # One in so many is changed: buffers with data, lengths for answers, indirect tables.
    DATA_SPOILT_ONE_IN = 3
    LENGTH_ODD_ONE_IN = 8
    TABLE_SPOILT_ONE_IN = 3
    # One chain in so many is in an indirect table.
    TABLE_ONE_IN = 4

    def __init__(self, memory: GuestMemory, ring: DriverQueue, source: Source, heap: int) -> None:
        """``heap`` is where the buffers go, ``HEAP_BYTES`` of it."""
        self.mutations = 0
        self._memory = memory
        self._ring = ring
        self._source = source
        self._heap = heap
        self._at = 0
        self._slot = 0
        self._table = memory.view(ring.desc_table, 16 * ring.size)
        self._avail = memory.view(ring.avail_ring, 6 + 2 * ring.size).cast("H")
        self._used = memory.view(ring.used_ring, 6 + 8 * ring.size)
        last = memory.regions[-1]
        self._places = (
            *(ring.desc_table, ring.avail_ring, ring.used_ring, ring.used_ring + 2, heap, heap + 1),
            *(memory.regions[0].size_bytes - 1, memory.regions[0].size_bytes - 64),
            *(memory.regions[0].size_bytes, last.gpa - 1, last.gpa, last.gpa + last.size_bytes - 2),
            *(0, 0xFEE0_0000, 0xF400_0000, 0xE000_0000, (1 << 64) - 1, (1 << 64) - 16, 1 << 63),
        )

    def offer(self, out: Sequence[bytes], into: Sequence[int]) -> None:
        """Make one chain available, more or less."""
        source = self._source
        descs = self._flood() if one_in(source, FLOOD_ONE_IN) else self._lay_out(out, into)
        for _ in range(source.below(4) if one_in(source, self.SPOILT_ONE_IN) else 0):
            self._spoil_chain(descs)
        if one_in(source, self.TABLE_ONE_IN) or len(descs) > self._ring.size:
            descs = [self._as_table(descs)]
            if one_in(source, self.TABLE_SPOILT_ONE_IN):
                self._spoil_chain(descs)
        self._place(descs)

    def _lay_out(self, out: Sequence[bytes], into: Sequence[int]) -> list[list[int]]:
        """Put the bytes into buffers, cut anywhere, and link them in order."""
        source = self._source
        descs: list[list[int]] = []
        for data in out:
            if one_in(source, self.DATA_SPOILT_ONE_IN):
                data = spoil(source, data)
                self.mutations += 1
            address = self._allocate(len(data))
            self._memory.write(address, data)
            self._cut(descs, address, len(data), 0)
        for length in into:
            if one_in(source, self.LENGTH_ODD_ONE_IN):
                length = number(source, 12)
                self.mutations += 1
            self._cut(descs, self._allocate(length), length, WRITE)
        return descs or [[self._heap, 0, 0, 0]]

    def _cut(self, descs: list[list[int]], address: int, length: int, flags: int) -> None:
        while length > 1 and len(descs) < MAX_CHAIN and one_in(self._source, 4):
            piece = 1 + self._source.below(length - 1)
            descs.append([address, piece, flags, 0])
            address, length = address + piece, length - piece
        descs.append([address, length, flags, 0])

    def _flood(self) -> list[list[int]]:
        """Ask for the whole memory, or for the same line, again and again."""
        size = pick(self._source, (self._memory.regions[0].size_bytes, 64))
        self.mutations += 1
        flags = pick(self._source, (0, WRITE))
        return [
            [0, size, flags, 0] for _ in range(pick(self._source, (3, 255, 256, 257, 1024, 1025)))
        ]

    def _allocate(self, length: int) -> int:
        at = self._at if self._at + length <= HEAP_BYTES else 0
        self._at = at + length
        return self._heap + at

    def _spoil_chain(self, descs: list[list[int]]) -> None:
        source = self._source
        self.mutations += 1
        desc = pick(source, descs)
        kind = source.below(8)
        if kind == 0:
            desc[0] = pick(source, self._places) + source.below(4) * source.below(16)
            desc[0] &= (1 << 64) - 1
        elif kind == 1:
            desc[0] = number(source, 64)
        elif kind == 2:
            desc[1] = number(source, 32)
        elif kind == 3:
            desc[2] ^= pick(source, (NEXT, WRITE, INDIRECT, 8, 0x8000))
        elif kind == 4:
            desc[2] = source.bits(16)
        elif kind == 5:
            desc[0] = pick(source, descs)[0]  # the same place twice
        elif kind == 6:
            desc[1] = (desc[1] + pick(source, (-1, 1, 16, -16))) & 0xFFFF_FFFF
        else:  # where it goes on is fixed here, whatever the order will be
            desc[3] = 0x1_0000 | pick(source, (source.below(self._ring.size), number(source, 16)))

    def _as_table(self, descs: list[list[int]]) -> list[int]:
        """Store an indirect table; return the descriptor that points to it."""
        address = -(-self._allocate(16 * len(descs)) // 16) * 16
        packed = b"".join(
            _DESC.pack(*linked) for linked in self._linked(descs, list(range(len(descs))))
        )
        self._memory.write(address, packed)
        return [address, len(packed), INDIRECT, 0]

    def _linked(self, descs: list[list[int]], slots: list[int]) -> list[tuple[int, int, int, int]]:
        linked = []
        for at, (addr, length, flags, following) in enumerate(descs):
            if following >= 0x1_0000:
                flags |= NEXT
                following &= 0xFFFF
            elif at + 1 < len(descs):
                flags |= NEXT
                following = slots[at + 1]
            linked.append((addr, length, flags & 0xFFFF, following & 0xFFFF))
        return linked

    def _place(self, descs: list[list[int]]) -> None:
        size = self._ring.size
        slots = [(self._slot + at) % size for at in range(len(descs))]
        self._slot = (self._slot + len(descs)) % size
        for slot, linked in zip(slots, self._linked(descs, slots), strict=True):
            _DESC.pack_into(self._table, 16 * slot, *linked)
        self._ring.stage(slots[0])

    def publish(self) -> None:
        """Show the chains to the device; now and then the ring itself is nonsense."""
        source, ring = self._source, self._ring
        ring.publish()
        if not one_in(source, self.NONSENSE_ONE_IN):
            return
        self.mutations += 1
        kind = source.below(8)
        if kind == 0:  # a jump, of which the next good index knows nothing
            self._avail[1] = (ring.avail_idx + pick(source, (1, -1, 2, 8, 0x8000))) & 0xFFFF
        elif kind == 1:
            self._avail[1] = number(source, 16)
        elif kind == 2:
            self._avail[2 + source.below(ring.size)] = number(source, 16)
        elif kind == 3:
            self._avail[0] = number(source, 16)
        elif kind == 4:
            self._avail[2 + ring.size] = number(source, 16)
        elif kind == 5:
            at = source.below(len(self._table) - 8)
            self._table[at : at + 8] = pick(source, EDGES).to_bytes(8, "little")
        else:
            self.scribble_used()

    def scribble_used(self) -> None:
        """Write to what is the device's to write."""
        at = pick(self._source, (2, 2, self._source.below(len(self._used) - 2)))
        self._used[at : at + 2] = number(self._source, 16).to_bytes(2, "little")

    def garbage(self) -> None:
        """Make everything random that the driver writes."""
        source, size = self._source, self._ring.size
        self.mutations += 1
        self._table[:] = source.data(16 * size)
        entries = source.data(2 * size)
        self._avail[2 : 2 + size] = memoryview(entries).cast("H")
        self._ring.avail_idx = (self._ring.avail_idx + 1 + source.below(size)) & 0xFFFF
        self._ring.publish()
