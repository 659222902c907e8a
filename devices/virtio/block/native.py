# SPDX-License-Identifier: BSD-3-Clause
"""A disk's queues served by the engine: what it is told before a turn, and counted after."""

from __future__ import annotations

from devices.virtio.counters import BYTES_FROM_GUEST, BYTES_TO_GUEST, INTERRUPTS, REQUESTS
from devices.virtio.device import MAX_BYTES_PER_TURN, MAX_CHAINS_PER_TURN
from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue.split_queue import Handover
from sys_util.linux import has_several_processors
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.backend import QueueActivation
    from devices.virtio.counters import Counters
    from sys_util.guest_memory import GuestMemory

try:
    from engine import native
except ModuleNotFoundError:  # it is not built; if it is broken, the exception ends the process
    IS_BUILT = False
else:
    IS_BUILT = True

# To watch the ring for this long costs less than to sleep and be woken. On a host with one
# processor it would only take the guest's time.
POLL_NS: Final = 32_000


class NativeDisk:
    """What all queues of one disk share; the device changes it between two turns."""

    def __init__(self, fd: int, *, read_only: bool) -> None:
        """``fd`` is the image, which the caller still owns."""
        self.fd = fd
        self.read_only = read_only
        self.writethrough = False
        self.capacity_sectors = 0
        self.queues = 0  # how many are being served
        self._memory: native.EngineMemory | None = None

    def memory(self, memory: GuestMemory) -> native.EngineMemory:
        """Return the guest's memory in the engine's form."""
        if self._memory is None:
            self._memory = native.EngineMemory(memory)
        return self._memory


class NativeQueue:
    """One queue of a disk that the engine serves, a turn at a time."""

    rests = False  # the device's gate says when Python serves

    def __init__(
        self,
        disk: NativeDisk,
        memory: GuestMemory,
        activation: QueueActivation,
        features: int,
        start: Handover,
    ) -> None:
        """Serve a queue that ``SplitQueue`` has checked, from ``start`` on."""
        layout = native.Layout(
            activation.desc_table,
            activation.avail_ring,
            activation.used_ring,
            activation.size,
            bool(features >> VIRTIO_RING_F_EVENT_IDX & 1),
            bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1),
        )
        position = native.Position(*start)
        self._queue = native.BlockQueue(disk.memory(memory), layout, position, activation.call_fd)
        self._queue.limits.chains = MAX_CHAINS_PER_TURN
        self._queue.limits.bytes = MAX_BYTES_PER_TURN
        self._queue.disk.fd = disk.fd
        self._queue.disk.read_only = disk.read_only
        self._disk = disk
        disk.queues += 1

    def close(self) -> None:
        """Note that the queue is not served any more."""
        self._disk.queues -= 1

    def turn(self, counters: Counters) -> int:
        """Serve one turn and count it; see ``native.BlockQueue.turn``."""
        queue, disk = self._queue, self._disk
        queue.disk.capacity_sectors = disk.capacity_sectors
        queue.disk.writethrough = disk.writethrough
        # Watch a ring only if it is the only one: other queues would wait meanwhile.
        queue.limits.poll_ns = POLL_NS if disk.queues == 1 and has_several_processors() else 0
        outcome = queue.turn()
        done, cells = queue.done, counters.cells
        counters.requests = cells[REQUESTS] = counters.requests + done.requests
        counters.bytes_from_guest += done.bytes_from_guest
        counters.bytes_to_guest += done.bytes_to_guest
        counters.interrupts = cells[INTERRUPTS] = counters.interrupts + done.interrupts
        cells[BYTES_FROM_GUEST] = counters.bytes_from_guest
        cells[BYTES_TO_GUEST] = counters.bytes_to_guest
        return outcome

    def take(self) -> Handover:
        """Return the position from which Python goes on."""
        return Handover(*self._queue.take())

    def give(self, start: Handover) -> None:
        """Go on from the position that Python has reached."""
        self._queue.give(native.Position(*start))
