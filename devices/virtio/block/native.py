# SPDX-License-Identifier: BSD-3-Clause
"""A disk's queues served by the engine: what it is told before a turn, and counted after.

Python's event loop waits, and calls the engine for a turn. An epoll set of the engine's would save
2.4 µs of a kick that takes 10 and more; ``tests/bench/RESULTS.md`` has the figures.
"""

from __future__ import annotations

from devices.virtio.queue.chain_loop import MAX_BYTES_PER_TURN, MAX_CHAINS_PER_TURN
from devices.virtio.queue.native import (
    IS_BUILT,
    NativeMemory,
    NativeRing,
    count,
    layout_of,
    position_of,
)
from sys_util.linux import has_several_processors
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.counters import Counters
    from devices.virtio.queue.servers import StartedQueue

if IS_BUILT:
    from engine import native

log = get_logger("devices.virtio.block")

# To watch the ring for this long costs less than to sleep and be woken. On a host with one
# processor it would only take the guest's time.
POLL_NS: Final = 32_000


class NativeDisk:
    """What all queues of one disk share; the device changes it between two turns."""

    def __init__(self, fd: int, *, read_only: bool, cached: bool) -> None:
        """``fd`` is the image, which the caller still owns; ``cached``: in the page cache."""
        self.fd = fd
        self.cached = cached
        self.read_only = read_only
        self.writethrough = False
        self.capacity_sectors = 0
        self._queues: list[native.BlockQueue] = []  # those that are served
        self.pool: native.Pool | None = None
        self.memory = NativeMemory()
        self.cells: memoryview[int] | None = None  # where reads and writes are counted

    def add(self, queue: native.BlockQueue) -> None:
        """Serve a queue, also in turns of the others."""
        self._queues.append(queue)
        self._introduce()

    def remove(self, queue: native.BlockQueue) -> None:
        """Serve a queue no more."""
        self._queues.remove(queue)
        queue.serve_too([])
        self._introduce()

    def _introduce(self) -> None:
        for queue in self._queues:
            queue.serve_too([other for other in self._queues if other is not queue])

    def start_threads(self, count: int) -> None:
        """Start threads for transfers that wait for the storage; do so before the filter is loaded.

        If the host refuses one of them, there is none, and transfers are made one after the other.
        """
        try:
            self.pool = native.Pool(count)
        except RuntimeError:
            log.warning(
                "the host refuses %d threads: this disk makes one transfer at a time", count
            )


class NativeQueue(NativeRing):
    """One queue of a disk that the engine serves, a turn at a time."""

    rests = False  # the device's gate says when Python serves

    def __init__(self, disk: NativeDisk, queue: StartedQueue) -> None:
        """Serve a queue from the position that it has now."""
        fds = (queue.activation.kick_fd, queue.activation.call_fd)
        self._queue = native.BlockQueue(
            disk.memory.of(queue.memory), layout_of(queue), position_of(queue), fds
        )
        super().__init__(self._queue)
        self._queue.limits.chains = MAX_CHAINS_PER_TURN
        self._queue.limits.bytes = MAX_BYTES_PER_TURN
        self._queue.disk.fd = disk.fd
        self._queue.disk.read_only = disk.read_only
        self._queue.disk.cached = disk.cached
        self._queue.pool = disk.pool
        self._queue.limits.poll_ns = POLL_NS if has_several_processors() else 0
        if disk.cells is not None:
            self._queue.count_in(disk.cells)
        self._disk = disk
        disk.add(self._queue)

    def close(self) -> None:
        """Serve the queue no more."""
        self._disk.remove(self._queue)

    def turn(self, counters: Counters) -> int:
        """Serve one turn and count it; see ``native.BlockQueue.turn``."""
        queue, disk = self._queue, self._disk
        queue.disk.capacity_sectors = disk.capacity_sectors
        queue.disk.writethrough = disk.writethrough
        outcome = queue.turn()
        count(counters, queue.done.requests, queue.done)
        return outcome
