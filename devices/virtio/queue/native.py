# SPDX-License-Identifier: BSD-3-Clause
"""What every queue has in common that the engine serves, and whether there is an engine."""

from __future__ import annotations

from devices.virtio.counters import BYTES_FROM_GUEST, BYTES_TO_GUEST, INTERRUPTS, REQUESTS
from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue.split_queue import Handover
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.virtio.counters import Counters
    from devices.virtio.queue.servers import StartedQueue
    from engine._engine import NetTurn, Turn
    from sys_util.guest_memory import GuestMemory

try:
    from engine import native
except ModuleNotFoundError:  # it is not built; if it is broken, the exception ends the process
    IS_BUILT = False
else:
    IS_BUILT = True


class NativeMemory:
    """The guest's memory in the engine's form, which is made once for all queues of a device."""

    def __init__(self) -> None:
        self._made: native.EngineMemory | None = None

    def of(self, memory: GuestMemory) -> native.EngineMemory:
        """Return it; ``memory`` is always the same."""
        if self._made is None:
            self._made = native.EngineMemory(memory)
        return self._made


def layout_of(queue: StartedQueue) -> native.Layout:
    """Return the layout of a queue in the engine's form."""
    activation, features = queue.activation, queue.features
    return native.Layout(
        activation.desc_table,
        activation.avail_ring,
        activation.used_ring,
        activation.size,
        bool(features >> VIRTIO_RING_F_EVENT_IDX & 1),
        bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1),
    )


def position_of(queue: StartedQueue) -> native.Position:
    """Return where the engine starts in a queue."""
    return native.Position(*queue.ring.handover())


class NativeRing:
    """A queue that the engine serves: what it counts, and how Python takes it and gives it back."""

    def __init__(self, made: native.Queue) -> None:
        self._made = made

    def take(self) -> Handover:
        """Return the position from which Python goes on."""
        return Handover(*self._made.take())

    def give(self, start: Handover) -> None:
        """Go on from the position that Python has reached."""
        self._made.give(native.Position(*start))


def count(counters: Counters, requests: int, done: Turn | NetTurn) -> None:
    """Add what a turn of the engine has done to the counters of its device."""
    cells = counters.cells
    counters.requests = cells[REQUESTS] = counters.requests + requests
    counters.interrupts = cells[INTERRUPTS] = counters.interrupts + done.interrupts
    received = counters.bytes_from_guest + done.bytes_from_guest
    counters.bytes_from_guest = cells[BYTES_FROM_GUEST] = received
    sent = counters.bytes_to_guest + done.bytes_to_guest
    counters.bytes_to_guest = cells[BYTES_TO_GUEST] = sent
