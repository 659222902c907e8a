# SPDX-License-Identifier: BSD-3-Clause
"""Requests of a disk that are right more often than not, and rings in which most of them arrive.

One driver in a few is wild, and most of what it offers is wrong. The others make a mistake now and
then, so that the engine and Python have to take turns at a ring.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from tests.fuzz.rings import HostileRing
from tests.fuzz.source import number, one_in, pick
from tests.fuzz.watched import INDIRECT, WRITE

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory
    from tests.fuzz.source import Source
    from tests.support.driver_queue import DriverQueue

SECTORS = 192
# The disk may be larger than its image by so many sectors. To read them fails.
MISSING_SECTORS = 8
# Reads and writes most of the time, and everything else.
TYPES = (*(0,) * 14, *(1,) * 14, 4, 4, 4, 8, 11, 13, 2, 0x8000_0000)
WILD_ONE_IN = 12
# At most so many chains are offered together, and so many sectors are for each of them.
MAX_OFFERED = 24
SHARE = SECTORS // MAX_OFFERED


class MildRing(HostileRing):
    """Most of it makes sense, or the engine would never have anything to do."""

    SPOILT_ONE_IN = 30
    NONSENSE_ONE_IN = 60
    DATA_SPOILT_ONE_IN = 40
    LENGTH_ODD_ONE_IN = 60
    TABLE_SPOILT_ONE_IN = 40
    OVERFULL_ONE_IN = 60
    apart = False  # whether buffers are kept apart from each other and from the rings
    read_only = False  # whether writes are refused: then there are few

    def __init__(self, memory: GuestMemory, ring: DriverQueue, source: Source, heap: int) -> None:
        super().__init__(memory, ring, source, heap)
        self._waiting: deque[int] = deque()  # how many descriptors each chain has in the table
        if one_in(source, WILD_ONE_IN):
            self.SPOILT_ONE_IN, self.NONSENSE_ONE_IN, self.OVERFULL_ONE_IN = 4, 40, 4
            self.DATA_SPOILT_ONE_IN, self.LENGTH_ODD_ONE_IN, self.TABLE_SPOILT_ONE_IN = 3, 8, 3

    def _flood(self) -> list[list[int]]:
        descs = super()._flood()
        for desc in descs:
            desc[0] |= self.apart << 40
        return descs

    def _place(self, descs: list[list[int]]) -> None:
        """Offer a chain, unless the table is full: one in so many overwrites others."""
        waiting, ring = self._waiting, self._ring
        while len(waiting) > (ring.avail_idx - ring.used_idx) & 0xFFFF:
            waiting.popleft()
        if sum(waiting) + len(descs) > ring.size and not one_in(self._source, self.OVERFULL_ONE_IN):
            return
        waiting.append(len(descs))
        super()._place(descs)

    def _type(self) -> int:
        kind = pick(self._source, TYPES)
        return 0 if kind == 1 and self.read_only and not one_in(self._source, 24) else kind

    def request(self) -> tuple[list[bytes], list[int]]:
        """Return a request that is right, or nearly."""
        source = self._source
        kind = self._type()
        sector = number(source, 64) if one_in(source, 24) else source.below(SECTORS - 2)
        out = [struct.pack("<IIQ", kind, source.below(2), sector)]
        if kind in (11, 13):
            out.append(struct.pack("<QII", source.below(70), number(source, 32), source.below(4)))
        elif kind == 1:
            out.append(source.data(512 * source.below(5)))
        into = [512 * source.below(5)] if kind in (0, 2) else []
        if one_in(source, 20):
            into.insert(0, 0)
        return out, [*into, *([20] if kind == 8 else []), 1]


class ApartRing(MildRing):
    """Chains that may be carried out in any order, as far as the engine does so.

    No two that are offered together have a byte of memory or of the image in common, unless both
    only read it. What is wrong with a chain leaves it to Python, which serves it alone.
    """

    apart = True
    OVERFULL_ONE_IN = 1 << 30

    def __init__(self, memory: GuestMemory, ring: DriverQueue, source: Source, heap: int) -> None:
        super().__init__(memory, ring, source, heap)
        self.DATA_SPOILT_ONE_IN = self.LENGTH_ODD_ONE_IN = self.OVERFULL_ONE_IN = 1 << 30
        self._next_share = 0

    def request(self) -> tuple[list[bytes], list[int]]:
        source = self._source
        kind = self._type()
        sector = self._next_share * SHARE + source.below(SHARE - 3)
        self._next_share = (self._next_share + 1) % (SECTORS // SHARE)
        length = 512 * source.below(5)
        if kind == 0 and one_in(source, 12):
            sector = SECTORS - 2 + source.below(MISSING_SECTORS)
        elif one_in(source, 24):
            sector = SECTORS + MISSING_SECTORS + number(source, 50)
        elif one_in(source, 24):
            length = (length + pick(source, (1, 511))) % 2048
        out = [struct.pack("<IIQ", kind, source.below(2), sector)]
        if kind in (11, 13):
            out.append(struct.pack("<QII", source.below(70), source.below(9), source.below(4)))
        elif kind == 1:
            out.append(source.data(length))
        into = [length] if kind in (0, 2) else []
        if one_in(source, 20):
            into.insert(0, 0)
        return out, [*into, *([20] if kind == 8 else []), 1]

    def _spoil_chain(self, descs: list[list[int]]) -> None:
        source = self._source
        self.mutations += 1
        desc = pick(source, descs)
        kind = source.below(5)
        if kind == 0:
            desc[0] |= 1 << 40
        elif kind == 1:
            desc[1] = number(source, 32) | 1 << 31
        elif kind == 2:
            desc[2] ^= pick(source, (WRITE, INDIRECT, 8, 0x8000))
        elif kind == 3:
            desc[1] = (desc[1] + pick(source, (-1, 1))) & 0xFFFF_FFFF
        else:
            desc[3] = 0x1_0000 | self._ring.size + source.below(3)

    def publish(self) -> None:
        """Show the chains; what is nonsense then brings no chain of before back."""
        source, ring = self._source, self._ring
        ring.publish()
        if not one_in(source, self.NONSENSE_ONE_IN):
            return
        self.mutations += 1
        kind = source.below(3)
        if kind == 0:
            self._avail[1] = (ring.avail_idx + 0x8000) & 0xFFFF
        else:
            self._avail[0 if kind == 1 else 2 + ring.size] = number(source, 16)
