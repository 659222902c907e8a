# SPDX-License-Identifier: BSD-3-Clause
"""Where a fuzzer's decisions come from."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

# Values at which sizes, indices and addresses go wrong.
EDGES = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 44, 45, 255, 256, 511, 512, 513, 4095, 4096, 4097),
    *(0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x1_0000, 0x1_0001, 0x10_0000, 0x7FFF_FFFF, 0x8000_0000),
    *(0xFFFF_F000, 0xFFFF_FFFE, 0xFFFF_FFFF, 0x1_0000_0000, 0x1_0000_0001, 1 << 52, 1 << 55),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 2, (1 << 64) - 1),
)


class Source(Protocol):
    """Decisions, one after the other."""

    def below(self, count: int) -> int:
        """Return a number in ``0..count - 1``."""
        ...

    def bits(self, count: int) -> int:
        """Return a number of ``count`` bits."""
        ...

    def data(self, length: int) -> bytes:
        """Return ``length`` bytes."""
        ...


class RandomSource:
    """Decisions of a generator; the same seed makes the same ones."""

    def __init__(self, seed: str) -> None:
        generator = random.Random(seed)
        self._random = generator.random
        self.bits = generator.getrandbits
        self.data = generator.randbytes

    def below(self, count: int) -> int:
        return int(self._random() * count)


class BytesSource:
    """Decisions read from bytes, which a fuzzer varies; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to decide with."""
        return self._at >= len(self._data)

    def below(self, count: int) -> int:
        return self.bits(count.bit_length() + 7) % count

    def bits(self, count: int) -> int:
        length = -(-count // 8)
        value = int.from_bytes(self._data[self._at : self._at + length], "little")
        self._at += length
        return value & (1 << count) - 1

    def data(self, length: int) -> bytes:
        data = self._data[self._at : self._at + length]
        self._at += length
        return data.ljust(length, b"\0")


def pick(source: Source, items: Sequence[T]) -> T:
    """Choose one of ``items``."""
    return items[source.below(len(items))]


def one_in(source: Source, count: int) -> bool:
    """Say yes once in ``count`` times."""
    return not source.below(count)


def number(source: Source, width: int) -> int:
    """Return a number of ``width`` bits, more often than not one at an edge."""
    kind = source.below(4)
    if kind == 0:
        return source.bits(width)
    if kind == 1:
        return source.below(64)
    return pick(source, EDGES) & (1 << width) - 1


def spoil(source: Source, data: bytes) -> bytes:
    """Return ``data`` with one thing changed: a field, a byte, its end."""
    kind = source.below(5)
    if kind == 0:
        return data[: source.below(len(data) + 1)]
    if kind == 1:
        return data + source.data(source.below(40))
    if not data:
        return source.data(1)
    width = (1, 2, 4, 8)[source.below(4)]
    at = source.below(max(1, len(data) // width)) * width
    value = number(source, 8 * width).to_bytes(width, "little")
    return (data[:at] + value + data[at + width :])[: len(data)]
