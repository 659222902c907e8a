# SPDX-License-Identifier: BSD-3-Clause
"""Frames of a driver and of its host that are nearly right, and buffers for them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.fuzz.disk_requests import MildRing
from tests.fuzz.ring_fuzzer import HEAP_GPA
from tests.fuzz.source import number, one_in, pick
from tests.support.net_rig import PLAIN

if TYPE_CHECKING:
    from tests.fuzz.source import Source

GSO_TYPES = (1, 4, 5, 0x81, 0x84, 3)
# Indirect tables are there, behind the buffers and the longest frame that begins in them.
TABLES = 0x4_0000
TABLES_BYTES = 0x2_0000


class FrameRing(MildRing):
    """Buffers for frames, never where the device or the driver keeps anything else."""

    _tables_at = 0
    apart = True

    def _spoil_chain(self, descs: list[list[int]]) -> None:
        super()._spoil_chain(descs)
        for desc in descs:
            if self.apart and desc[0] < HEAP_GPA:
                desc[0] |= 1 << 40

    def _as_table(self, descs: list[list[int]]) -> list[int]:
        at, self._at = self._at, TABLES + self._tables_at
        made = super()._as_table(descs)
        self._tables_at = (self._at - TABLES) % TABLES_BYTES
        self._at = at
        return made

    def _allocate(self, length: int) -> int:
        if self._at < TABLES:
            return super()._allocate(length)
        self._at += length + 16
        return self._heap + self._at - length - 16


def head_of(source: Source) -> bytes:
    """Return a header that is right, or nearly."""
    if not one_in(source, 4):
        return PLAIN
    gso_type = pick(source, GSO_TYPES) if one_in(source, 2) else 0
    fields = [number(source, 16) if one_in(source, 3) else source.below(60) for _ in range(4)]
    flags = source.bits(8) if one_in(source, 4) else source.below(4)
    return struct.pack("<BBHHHHH", flags, gso_type, *fields, source.below(2))


def length_of(source: Source) -> int:
    """Return the length of a frame: most are short."""
    kind = source.below(20)
    if kind == 0:
        return pick(source, (65550, 65551, 30_000, 13))
    return 14 + source.below(9000 if kind < 3 else 1600 if kind < 8 else 100)


def sending(source: Source) -> list[bytes]:
    """Return a frame of the driver with its header."""
    return [head_of(source), source.data(length_of(source))]


def buffers(source: Source) -> list[int]:
    """Return the buffers of a chain for frames."""
    sizes = [pick(source, (12, 60, 100, 1526, 4096))]
    if one_in(source, 6):
        sizes.append(source.below(3000))
    if one_in(source, 20):
        sizes.insert(0, 0)
    return sizes


def arrival(source: Source) -> bytes:
    """Return a frame of the host with its header."""
    whole = head_of(source) + source.data(length_of(source))
    return whole[: 1 + source.below(20)] if one_in(source, 40) else whole
