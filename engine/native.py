# SPDX-License-Identifier: BSD-3-Clause
"""The engine as Python sees it. Where it is not built, importing this is an ImportError.

Everything belongs to one thread. Descriptors stay the caller's, who closes none before its queue.
"""

from __future__ import annotations

from engine._engine import ffi, lib
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory

IDLE: Final = 0
MORE: Final = 1
PYTHON: Final = 2

lib.crosvm_engine_exit_on_panic()


class Position(NamedTuple):
    """Where a queue stands: free-running 16-bit indices; all that was used is published.

    ``avail_idx``: what is known of the driver's index, and was believed.
    ``signalled``: the used index when an interrupt was last thought about. ``must_signal``: the
    next answer to whether one is wanted is yes.
    """

    next_avail: int
    avail_idx: int
    next_used: int
    signalled: int
    must_signal: bool


class Layout(NamedTuple):
    """Where the driver put a queue, in guest-physical addresses, and what it negotiated."""

    desc_table: int
    avail_ring: int
    used_ring: int
    size: int
    event_idx: bool
    indirect: bool


class EngineMemory:
    """A guest's memory for the engine, which keeps it mapped."""

    def __init__(self, memory: GuestMemory) -> None:
        # These objects hold the mappings: whoever closes the memory does not unmap them.
        self._held = [ffi.from_buffer("uint8_t[]", mapping) for _, mapping in memory.mappings]
        regions = ffi.new("struct crosvm_region[]", len(self._held))
        for at, (region, _) in enumerate(memory.mappings):
            regions[at].gpa = region.gpa
            regions[at].size_bytes = region.size_bytes
            regions[at].base = self._held[at]
        made = lib.crosvm_engine_memory(regions, len(self._held), ffi.NULL, 0)
        self.handle = ffi.gc(made, lib.crosvm_engine_free_memory)


class BlockQueue:
    """One queue of a disk. Set ``disk`` and ``limits`` before a turn; read ``done`` after it."""

    def __init__(
        self, memory: EngineMemory, layout: Layout, position: Position, call_fd: int
    ) -> None:
        """Take a queue up; ``call_fd`` of -1 is for no interrupts.

        Raises:
            ValueError: the layout is none that ``SplitQueue`` would take.
        """
        self.disk = ffi.new("struct crosvm_disk *")
        self.limits = ffi.new("struct crosvm_limits *")
        self.done = ffi.new("struct crosvm_turn *")
        self._memory = memory
        self._position = ffi.new("struct crosvm_position *", position)
        packed = ffi.new("struct crosvm_layout *", layout)
        made = lib.crosvm_engine_block_queue(memory.handle, packed, self._position, call_fd)
        if made == ffi.NULL:
            raise ValueError("a queue that cannot be")
        self._queue = ffi.gc(made, lib.crosvm_engine_free_block_queue)

    def turn(self) -> int:
        """Serve what the driver has offered, within ``limits``; return why it ended.

        ``IDLE``: the ring is empty and a kick was asked for. ``MORE``: serve again, nobody kicks.
        ``PYTHON``: take the position, serve one chain in Python and give the position back.
        """
        lib.crosvm_engine_block_turn(self._queue, self.disk, self.limits, self.done)
        return self.done.outcome

    def take(self) -> Position:
        """Return where the queue stands."""
        lib.crosvm_engine_take(self._queue, self._position)
        at = self._position
        return Position(at.next_avail, at.avail_idx, at.next_used, at.signalled, at.must_signal)

    def give(self, position: Position) -> None:
        """Go on from where Python has come to."""
        at = self._position
        at.next_avail, at.avail_idx, at.next_used, at.signalled, at.must_signal = position
        lib.crosvm_engine_give(self._queue, at)
