# SPDX-License-Identifier: BSD-3-Clause
"""The engine for Python. If it is not built, importing this module raises ``ImportError``.

All objects are for one thread. The caller owns every descriptor, and closes none before the queue
that uses it.
"""

from __future__ import annotations

from engine._engine import ffi, lib
from sys_util.linux import buffer_address
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine import _engine
    from engine._engine import CData, Tap
    from sys_util.guest_memory import GuestMemory

IDLE: Final = 0
MORE: Final = 1
PYTHON: Final = 2

lib.crosvm_engine_exit_on_panic()


def report_panics(fd: int, head: bytes) -> None:
    """Have a panic, which ends the process, reported on ``fd``, too, which stays open.

    The report is one write of ``head``, at most 16 bytes, and a msgpack string. Only the first call
    in a process counts.
    """
    lib.crosvm_engine_report_panics(fd, head, len(head))


class Position(NamedTuple):
    """The position of a queue: 16-bit indices that wrap around. The driver sees all used chains.

    ``avail_idx``: the driver's index when it was last read and found valid. ``signalled``: the used
    index when we last decided whether to send an interrupt. ``must_signal``: the next such decision
    is yes in any case.
    """

    next_avail: int
    avail_idx: int
    next_used: int
    signalled: int
    must_signal: bool


class Layout(NamedTuple):
    """The guest-physical addresses of a queue, its size, and the features that were negotiated."""

    desc_table: int
    avail_ring: int
    used_ring: int
    size: int
    event_idx: bool
    indirect: bool


class EngineMemory:
    """A guest's memory, as the engine uses it. It stays mapped as long as this object exists."""

    def __init__(self, memory: GuestMemory) -> None:
        # While these views exist, ``memory.close`` cannot unmap the memory. They are no exports of
        # the mappings (``ffi.from_buffer``): CPython 3.11 crashes if its garbage collector finds a
        # view and an export of it together.
        self._held = [memoryview(mapping) for _, mapping in memory.mappings]
        regions = ffi.new("struct crosvm_region[]", len(self._held))
        for at, (region, _) in enumerate(memory.mappings):
            regions[at].gpa = region.gpa
            regions[at].size_bytes = region.size_bytes
            regions[at].base = ffi.cast("uint8_t *", buffer_address(self._held[at]))
            regions[at].block_bytes = region.block_bytes
        self._tables = [memoryview(area.blocks) for area in memory.hot_areas]
        hot = (at for at, (region, _) in enumerate(memory.mappings) if region.block_bytes)
        for at, table in zip(hot, self._tables, strict=True):
            regions[at].blocks = ffi.cast("uint8_t *", buffer_address(table))
        made = lib.crosvm_engine_memory(regions, len(self._held), ffi.NULL, 0)
        self.handle = ffi.gc(made, lib.crosvm_engine_free_memory)


class Pool:
    """Threads for the transfers of one disk. Between two turns of its queues they have none.

    They end with this object. Under a seccomp filter they cannot, so there it must stay.
    """

    def __init__(self, threads: int) -> None:
        """Start so many threads. With none, transfers are made last first, which is for tests.

        Raises:
            RuntimeError: the host refuses one of them.
        """
        made = lib.crosvm_engine_pool(threads)
        if made == ffi.NULL:
            raise RuntimeError("no thread")
        self.handle = ffi.gc(made, lib.crosvm_engine_free_pool)


class Queue:
    """What all kinds of queues have in common: a position, which Python takes and gives back."""

    def __init__(
        self,
        position: Position,
        take: Callable[[CData, _engine.Position], None],
        give: Callable[[CData, _engine.Position], None],
    ) -> None:
        self._position = ffi.new("struct crosvm_position *", position)
        self._queue: CData
        self._take, self._give = take, give

    def take(self) -> Position:
        """Return the position of the queue."""
        self._take(self._queue, self._position)
        at = self._position
        return Position(at.next_avail, at.avail_idx, at.next_used, at.signalled, at.must_signal)

    def give(self, position: Position) -> None:
        """Set the position that the queue has after Python has served it."""
        at = self._position
        at.next_avail, at.avail_idx, at.next_used, at.signalled, at.must_signal = position
        self._give(self._queue, at)


class BlockQueue(Queue):
    """One queue of a disk. Set ``disk`` and ``limits`` before a turn; read ``done`` after it.

    With a ``pool`` several transfers of a turn are under way at the same time.
    """

    def __init__(
        self, memory: EngineMemory, layout: Layout, position: Position, fds: tuple[int, int]
    ) -> None:
        """Start to serve a queue; ``fds`` are those of kick and call, -1 for no interrupts.

        Raises:
            ValueError: the layout is invalid, so ``SplitQueue`` would refuse it too.
        """
        super().__init__(position, lib.crosvm_engine_take, lib.crosvm_engine_give)
        self.disk = ffi.new("struct crosvm_disk *")
        self.limits = ffi.new("struct crosvm_limits *")
        self.done = ffi.new("struct crosvm_turn *")
        self.pool: Pool | None = None
        self._memory = memory
        packed = ffi.new("struct crosvm_layout *", layout)
        made = lib.crosvm_engine_block_queue(memory.handle, packed, self._position, *fds)
        if made == ffi.NULL:
            raise ValueError("a queue that cannot be")
        self._queue = ffi.gc(made, lib.crosvm_engine_free_block_queue)
        self.serve_too([])

    def serve_too(self, others: list[BlockQueue]) -> None:
        """Let a turn serve other queues of the disk, too, while it watches its own.

        What is for Python in one of them is left there, and its own kick signalled.
        """
        self._others = ffi.new("struct crosvm_block_queue *[]", [one._queue for one in others])
        self._count = len(others)

    def count_in(self, cells: memoryview[int]) -> None:
        """Count reads and writes in ``cells``, from now on; see ``latency.rs`` for their order."""
        self._cells = cells  # stay as long as the queue
        address = ffi.cast("uint64_t *", buffer_address(cells.cast("B")))
        lib.crosvm_engine_count_in(self._queue, address)

    def turn(self) -> int:
        """Serve the chains that the driver has offered, within ``limits``; return why it ended.

        ``IDLE``: the ring is empty, and the driver was asked for a kick. ``MORE``: call this again,
        because the driver will not kick. ``PYTHON``: take the position, serve one chain in Python
        and give the position back.
        """
        pool = ffi.NULL if self.pool is None else self.pool.handle
        lib.crosvm_engine_block_turn(
            *(self._queue, self._others, self._count, self.disk, self.limits, pool, self.done)
        )
        return self.done.outcome


def new_tap() -> Tap:
    """Return a description of a TAP, for the two queues that use it; nothing in it is set."""
    return ffi.new("struct crosvm_tap *")


class NetQueue(Queue):
    """One queue of a network card. Set ``limits`` before a turn; read ``done`` after it."""

    def __init__(
        self,
        memory: EngineMemory,
        layout: Layout,
        position: Position,
        call_fd: int,
        tap: Tap,
        *,
        receives: bool,
    ) -> None:
        """Start to serve a queue; with a ``call_fd`` of -1 no interrupts are sent.

        Raises:
            ValueError: the layout is invalid, so ``SplitQueue`` would refuse it too.
        """
        super().__init__(position, lib.crosvm_engine_net_take, lib.crosvm_engine_net_give)
        self.limits = ffi.new("struct crosvm_limits *")
        self.done = ffi.new("struct crosvm_net_turn *")
        self._tap = tap
        self._memory = memory
        packed = ffi.new("struct crosvm_layout *", layout)
        made = lib.crosvm_engine_net_queue(memory.handle, packed, self._position, call_fd, receives)
        if made == ffi.NULL:
            raise ValueError("a queue that cannot be")
        self._queue = ffi.gc(made, lib.crosvm_engine_free_net_queue)

    def turn(self) -> int:
        """Move some frames; return why it ended, as ``BlockQueue.turn`` does.

        For a queue that receives, ``MORE`` means: call this again when the TAP has frames.
        """
        lib.crosvm_engine_net_turn(self._queue, self._tap, self.limits, self.done)
        return self.done.outcome

    def frame(self) -> bytes:
        """Return the frame that Python has to deliver, if ``done.frame_bytes`` is not 0."""
        start = lib.crosvm_engine_net_frame(self._queue)
        return bytes(ffi.buffer(start, self.done.frame_bytes))
