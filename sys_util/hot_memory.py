# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory that comes and goes in blocks while the guest runs.

The memfd of guest memory is as large as memory can ever be, and every process maps all of it from
the start, which costs nothing: the file is sparse. A block that is not there is mapped, too, but no
address of the guest leads to it. A table of bytes at the end of the memfd says which blocks are
there. The vmm alone writes it, and keeps a copy that it relies on: a device process that was taken
over could change the table. That gives it nothing that it does not have, since it maps all blocks.

Each access looks at the table again, so a block that has gone is no address any more. A ring whose
place went away after the driver activated it is used until the queue is reset.
"""

from __future__ import annotations

from sys_util.linux import full_barrier
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def runs(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Return where there are no zeros, as (first, end)."""
    found: list[tuple[int, int]] = []
    start = -1
    for index, there in enumerate((*blocks, 0)):
        if there and start < 0:
            start = index
        elif not there and start >= 0:
            found.append((start, index))
            start = -1
    return found


class HotArea:
    """One region whose blocks come and go, and the bytes of the table that are its own."""

    __slots__ = ("block_bytes", "blocks", "end", "file_offset", "start", "view")

    def __init__(self, gpa: int, file_offset: int, view: memoryview, blocks: memoryview) -> None:
        """``view`` has all bytes of the region, and ``blocks`` one byte for each of its blocks."""
        self.start = gpa
        self.end = gpa + view.nbytes
        self.file_offset = file_offset
        self.block_bytes = view.nbytes // blocks.nbytes
        self.view = view
        self.blocks = blocks

    def has(self, gpa: int, end: int) -> bool:
        """Return whether all blocks from ``gpa`` to ``end``, which are in the area, are there."""
        first = (gpa - self.start) // self.block_bytes
        last = (max(end - 1, gpa) - self.start) // self.block_bytes
        return 0 not in self.blocks[first : last + 1]

    def runs(self) -> list[tuple[int, int]]:
        """Return the blocks that are there, as runs of (first, end)."""
        return runs(self.blocks)

    def show(self, first: int, count: int) -> None:
        """Make blocks addresses for every process. Only the vmm may call this."""
        self.blocks[first : first + count] = b"\1" * count
        full_barrier()

    def hide(self, first: int, count: int) -> None:
        """Make blocks no addresses any more. Only the vmm may call this."""
        self.blocks[first : first + count] = bytes(count)
        full_barrier()

    def release(self) -> None:
        """Release the views."""
        self.blocks.release()
