# SPDX-License-Identifier: BSD-3-Clause
"""What of a port outlives the process: output that waits, and how much was written and read.

The backlog is a ring whose ``head`` and ``tail`` only grow. Bytes are first stored behind the tail,
and become valid when the new tail is saved (``state.py``). The head, and how much of a chain was
written or read, lie in cells, each of which is updated by one store right after the system call.
"""

from __future__ import annotations

import mmap

from sys_util.errors import ProtocolError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# As much of a busy console as somebody who connects late may still want to see.
BACKLOG_BYTES: Final = 256 * 1024

# Positions in the ring stay below this: no guest prints so much.
MAX_POSITION: Final = 1 << 62

# The cells of one port.
HEAD: Final = 0
WRITTEN: Final = 1  # the place of a chain in its queue, and how many of its bytes are written
READ: Final = 2  # the same for input: how many bytes were read into a chain
_CELLS: Final = 4
_HEADER_BYTES: Final = mmap.PAGESIZE  # of all ports

_PLACE_SHIFT: Final = 48
_NOTHING: Final = (1 << 64) - 1
_MAX_LENGTH: Final = 1 << 32  # of one chain


class Backlog:
    """The waiting bytes of one port, and its cells."""

    __slots__ = ("_memory", "cells", "tail")

    def __init__(self, memory: memoryview, cells: memoryview[int]) -> None:
        """Use ``memory`` and ``cells`` of this port. The ring is empty until ``restore``."""
        self._memory = memory
        self.cells = cells
        self.tail = self.head

    def __len__(self) -> int:
        return self.tail - self.head

    @property
    def head(self) -> int:
        """The position of the oldest byte."""
        return self.cells[HEAD]

    @property
    def room(self) -> int:
        """How many more bytes fit."""
        return len(self._memory) - len(self)

    def clear(self) -> None:
        """Forget everything that an earlier process left."""
        self.cells[HEAD] = self.tail = 0
        self.forget(WRITTEN)
        self.forget(READ)

    def restore(self, tail: int) -> None:
        """Go on with what an earlier process left.

        Raises:
            ProtocolError: ``tail`` does not fit the head.
        """
        if not self.head <= tail <= self.head + len(self._memory) <= MAX_POSITION:
            raise ProtocolError(f"a backlog from {self.head} to {tail}")
        self.tail = tail

    def append(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Add bytes, for which there must be room, behind the others."""
        size = len(self._memory)
        for piece in pieces:
            at = self.tail % size
            first = min(len(piece), size - at)
            self._memory[at : at + first] = piece[:first]
            self._memory[: len(piece) - first] = piece[first:]
            self.tail += len(piece)

    def peek(self, length: int) -> bytes:
        """Return up to ``length`` bytes from the front."""
        length = min(length, len(self))
        at = self.head % len(self._memory)
        data = bytes(self._memory[at : at + length])
        return data + bytes(self._memory[: length - len(data)])

    def length_of(self, cell: int, place: int) -> int:
        """Return how many bytes of the chain at ``place`` of its queue are done, by ``cell``."""
        found, length = divmod(self.cells[cell], 1 << _PLACE_SHIFT)
        return length if found == place and length <= _MAX_LENGTH else 0

    def forget(self, cell: int) -> None:
        """Clear ``cell``: it does not hold for any chain now."""
        self.cells[cell] = _NOTHING


def progress(place: int, length: int) -> int:
    """Return the value of a cell when ``length`` bytes of the chain at ``place`` are done."""
    return place << _PLACE_SHIFT | length


def backlogs_bytes(count: int) -> int:
    """Return the size of the file for ``count`` backlogs."""
    return _HEADER_BYTES + count * BACKLOG_BYTES


def open_backlogs(fd: int, count: int) -> list[Backlog]:
    """Return ``count`` backlogs in the file ``fd``, which the caller still owns; -1: no file."""
    size = BACKLOG_BYTES
    memory = memoryview(mmap.mmap(fd, backlogs_bytes(count)))
    cells = memory[:_HEADER_BYTES].cast("Q")
    rings = memory[_HEADER_BYTES:]
    return [
        Backlog(rings[at * size : (at + 1) * size], cells[at * _CELLS : (at + 1) * _CELLS])
        for at in range(count)
    ]
