# SPDX-License-Identifier: BSD-3-Clause
"""The queues of one device, between the event loop of its process and their servers."""

from __future__ import annotations

from devices.virtio.counters import Counters
from devices.virtio.features import BASE_FEATURES, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1
from devices.virtio.queue.servers import StartedQueue
from devices.virtio.queue.split_queue import QueueError, QueueState, SplitQueue
from sys_util.errors import ProtocolError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.backend import QueueActivation, RingPosition, Server
    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.queue.servers import QueueServer
    from sys_util.guest_memory import GuestMemory

# A guest can cause a log line with every request; this limits them.
LOG_LINES: Final = 10
LOG_SECONDS: Final = 5.0


class QueueWorker:
    """Start, serve, pause and stop the queues of ``device``. Owns none of their descriptors.

    Nothing here waits: a kick is served by ``on_kick``, one turn at a time.
    """

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, counters: Counters | None = None
    ) -> None:
        self.counters = Counters() if counters is None else counters
        self._device = device
        self._memory = memory
        self._queues: dict[int, QueueServer] = {}
        self._paused = False
        self._withheld = False
        self._log = get_logger("devices.virtio.worker").limited(LOG_LINES, LOG_SECONDS)

    @property
    def offered_features(self) -> int:
        """Every feature bit on offer: the device's own and those of the queue code."""
        in_order = int(self._device.in_order) << VIRTIO_F_IN_ORDER
        return self._device.features() | BASE_FEATURES | in_order

    def start_queue(self, activation: QueueActivation, features: int) -> None:
        """Start a queue; then call ``on_kick`` once, as no kick comes for chains that are there.

        The caller still owns both descriptors; ``kick_fd`` must not block. A ``call_fd`` of -1
        stands for a queue without an interrupt.

        Raises:
            ProtocolError: the vmm asked for features or a queue that the device does not have.
            QueueError: the driver's layout is unusable; the device needs a reset.
        """
        index, sizes = activation.index, self._device.queue_sizes
        unknown = features & ~self.offered_features
        if unknown or not features >> VIRTIO_F_VERSION_1 & 1:
            raise ProtocolError(f"{self._device.name}: features {features:#x} were not on offer")
        if not 0 <= index < len(sizes) or index in self._queues:
            raise ProtocolError(f"{self._device.name}: queue {index} cannot be started")
        if activation.size > sizes[index]:
            raise QueueError(f"queue size {activation.size} is above the limit of {sizes[index]}")
        ring = SplitQueue(self._memory, activation, features)
        ring.withheld = self._withheld
        queue = StartedQueue(
            *(self._device.name, activation, features, ring),
            *(self._memory, self.counters, self._log, self._paused),
        )
        self._queues[index] = self._device.make_server(queue)
        self.show_engines()

    def stop_queue(self, index: int) -> None:
        """Forget a queue, if it is started. Its memory is not touched after this."""
        server = self._queues.pop(index, None)
        if server is not None:
            server.stop()
            self.show_engines()

    def port(self, index: int) -> QueuePort | None:
        """Return the port of a queue that the device serves itself, ``None`` if it is unusable."""
        server = self._queues.get(index)
        return None if server is None else server.port

    def takes_kicks(self, index: int) -> bool:
        """Return whether the kicks of a started queue come to this process."""
        server = self._queues.get(index)
        return server is not None and server.takes_kicks

    def is_devices_own(self, index: int) -> bool:
        """Return whether an error in a queue is one of all queues that device or kernel serve."""
        server = self._queues.get(index)
        return server is not None and server.is_devices_own

    def abandon_own_queues(self) -> list[int]:
        """Give up the queues that device or kernel serve, after an error while they did so."""
        own = [index for index, server in self._queues.items() if server.is_devices_own]
        for index in own:
            self._queues[index].abandon()
        return own

    def pause(self) -> None:
        """Serve nothing until ``resume``. Nothing is in flight when this returns."""
        self._set_paused(paused=True)
        self._device.pause()
        for server in self._queues.values():
            server.flush()

    def resume(self) -> None:
        """Serve again; then call ``on_kick`` for every queue: kicks were ignored meanwhile."""
        self._set_paused(paused=False)
        self._device.resume()

    def _set_paused(self, *, paused: bool) -> None:
        self._paused = paused
        for server in self._queues.values():
            server.pause(paused=paused)

    def withhold_used(self) -> None:
        """Take no chains and publish nothing until ``show_used``."""
        self._set_withheld(withheld=True)

    def show_used(self) -> None:
        """Publish what was withheld, and interrupt the driver if it wants that.

        Then call ``on_kick`` for every queue: kicks were ignored meanwhile.
        """
        self._set_withheld(withheld=False)
        for server in self._queues.values():
            server.show_used()

    def _set_withheld(self, *, withheld: bool) -> None:
        self._withheld = withheld
        for server in self._queues.values():
            ring = server.ring()
            if ring is not None:
                ring.withheld = withheld

    def show_engines(self) -> None:
        """Show the vmm which engine serves each queue; a command may have changed that."""
        self.counters.show_engines({at: server.engine for at, server in self._queues.items()})

    def positions(self) -> dict[int, tuple[Server, RingPosition | None]]:
        """Return who serves each started queue, and its position if this process knows it."""
        found: dict[int, tuple[Server, RingPosition | None]] = {}
        for index, server in self._queues.items():
            who = server.who
            ring = server.ring()
            found[index] = (who, None if ring is None else ring.position())
        return found

    def states(self) -> dict[int, QueueState]:
        """Return the position of each usable queue."""
        rings = {index: server.ring() for index, server in self._queues.items()}
        return {index: ring.state() for index, ring in rings.items() if ring is not None}

    def on_kick(self, index: int) -> bool:
        """Serve one turn of a queue; return whether it has more, which no kick will announce.

        Raises:
            QueueError: the driver made the queue unusable; the device needs a reset. Later kicks
                of this queue are ignored.
            GuestError: an error in a queue that the device serves itself; the caller has to call
                ``abandon_own_queues``.
        """
        server = self._queues.get(index)
        if server is None:
            return False
        server.take_kick()
        if self._paused or self._withheld:
            return False
        return server.turn()
