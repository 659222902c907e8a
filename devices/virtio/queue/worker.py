# SPDX-License-Identifier: BSD-3-Clause
"""The queues of one device, between the event loop of its process and ``serve_queue``."""

from __future__ import annotations

from os import eventfd_read

from devices.virtio.counters import INTERRUPTS, KICKS, Counters
from devices.virtio.device import (
    ENGINE_MORE,
    ENGINE_PYTHON,
    serve_queue,
)
from devices.virtio.features import BASE_FEATURES, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1
from devices.virtio.queue.port import QueuePort
from devices.virtio.queue.split_queue import QueueError, QueueState, SplitQueue
from sys_util.errors import ProtocolError
from sys_util.eventfd import signal_eventfd
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.backend import QueueActivation, RingPosition
    from devices.virtio.device import EngineQueue, VirtioDevice
    from sys_util.guest_memory import GuestMemory

# A guest can cause a log line with every request; this limits them.
LOG_LINES: Final = 10
LOG_SECONDS: Final = 5.0


class _ActiveQueue:
    """A started queue. ``ring`` is ``None`` if the driver made it unusable or the kernel serves it.

    ``port`` is set when the device serves the queue itself.
    """

    __slots__ = ("call_fd", "engine", "in_engine", "kick_fd", "port", "ring")

    def __init__(
        self, ring: SplitQueue, kick_fd: int, call_fd: int, port: QueuePort | None
    ) -> None:
        self.ring: SplitQueue | None = ring
        self.engine: EngineQueue | None = None
        self.in_engine = False  # the engine has the position of the queue, and ``ring`` an old one
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self.port = port

    def abandon(self) -> None:
        """Never touch the ring's memory again."""
        self.ring = None
        if self.port is not None:
            self.port.close()
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def turn_of_engine(self, engine: EngineQueue, ring: SplitQueue, counters: Counters) -> int:
        """Let the engine serve a turn; see ``EngineQueue.turn``."""
        if not self.in_engine:
            engine.give(ring.handover())
            self.in_engine = True
        return engine.turn(counters)

    def take_from_engine(self) -> SplitQueue | None:
        """Return the ring, after it has got its position back from the engine."""
        if self.in_engine and self.engine is not None and self.ring is not None:
            self.ring.go_on(self.engine.take())
            self.in_engine = False
        return self.ring


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
        self._queues: dict[int, _ActiveQueue] = {}
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
        port = None
        if index in self._device.own_queues:
            name, counters = self._device.name, self.counters
            port = QueuePort(name, index, ring, activation.call_fd, counters, self._log)
            port.paused = self._paused
            port.resumed = activation.resume
        queue = _ActiveQueue(ring, activation.kick_fd, activation.call_fd, port)
        if index in self._device.kernel_queues:
            self._device.start_kernel_queue(activation, ring.state().next_avail)
            queue.abandon()
        elif port is None:
            queue.engine = self._device.start_engine(
                self._memory, activation, features, ring.handover()
            )
        self._queues[index] = queue

    def stop_queue(self, index: int) -> None:
        """Forget a queue, if it is started. Its memory is not touched after this."""
        queue = self._queues.pop(index, None)
        if queue is None:
            return
        queue.abandon()
        if index in self._device.kernel_queues:
            self._device.stop_kernel_queue(index)

    def port(self, index: int) -> QueuePort | None:
        """Return the port of a queue that the device serves itself, ``None`` if it is unusable."""
        queue = self._queues.get(index)
        return None if queue is None or queue.ring is None else queue.port

    def abandon_own_queues(self) -> list[int]:
        """Give up the queues that device or kernel serve, after an error while they did so."""
        kernel = self._device.kernel_queues
        own = [
            index
            for index, queue in self._queues.items()
            if (queue.port and queue.ring) or index in kernel
        ]
        for index in own:
            self._queues[index].abandon()
        return own

    def pause(self) -> None:
        """Serve nothing until ``resume``. Nothing is in flight when this returns."""
        self._set_paused(paused=True)
        self._device.pause()
        for queue in self._queues.values():
            if queue.port is not None:
                queue.port.flush()

    def resume(self) -> None:
        """Serve again; then call ``on_kick`` for every queue: kicks were ignored meanwhile."""
        self._set_paused(paused=False)
        self._device.resume()

    def _set_paused(self, *, paused: bool) -> None:
        self._paused = paused
        for queue in self._queues.values():
            if queue.port is not None:
                queue.port.paused = paused

    def withhold_used(self) -> None:
        """Take no chains and publish nothing until ``show_used``."""
        self._set_withheld(withheld=True)

    def show_used(self) -> None:
        """Publish what was withheld, and interrupt the driver if it wants that.

        Then call ``on_kick`` for every queue: kicks were ignored meanwhile.
        """
        self._set_withheld(withheld=False)
        for queue in self._queues.values():
            if queue.port is not None:
                queue.port.flush()
            elif queue.ring is not None:
                queue.ring.publish()
                if queue.ring.wants_interrupt():
                    self._interrupt(queue)

    def _set_withheld(self, *, withheld: bool) -> None:
        self._withheld = withheld
        for queue in self._queues.values():
            ring = queue.take_from_engine()
            if ring is not None:
                ring.withheld = withheld

    def positions(self) -> dict[int, tuple[str, RingPosition | None]]:
        """Return who serves each started queue, and its position if this process knows it."""
        found: dict[int, tuple[str, RingPosition | None]] = {}
        for index, queue in self._queues.items():
            server = self._server(index, queue)
            ring = queue.take_from_engine()
            found[index] = (server, None if ring is None else ring.position())
        return found

    def _server(self, index: int, queue: _ActiveQueue) -> str:
        if index in self._device.kernel_queues:
            return "kernel"
        if queue.ring is None:
            return "nobody"
        if queue.in_engine:
            return "engine"
        return "device" if queue.port is None else "port"

    def states(self) -> dict[int, QueueState]:
        """Return the position of each usable queue."""
        rings = {index: queue.take_from_engine() for index, queue in self._queues.items()}
        return {index: ring.state() for index, ring in rings.items() if ring is not None}

    def on_kick(self, index: int) -> bool:
        """Serve one turn of a queue; return whether it has more, which no kick will announce.

        Raises:
            QueueError: the driver made the queue unusable; the device needs a reset. Later kicks
                of this queue are ignored.
            GuestError: an error in a queue that the device serves itself; the caller has to call
                ``abandon_own_queues``.
        """
        queue = self._queues.get(index)
        if queue is None or index in self._device.kernel_queues:  # the kernel reads its kicks
            return False
        counters = self.counters
        try:
            eventfd_read(queue.kick_fd)
            counters.kicks = kicks = counters.kicks + 1
            counters.cells[KICKS] = kicks
        except BlockingIOError:
            pass  # no kick came: this is one more turn for the same chains
        ring = queue.ring
        if ring is None or self._paused or self._withheld:
            return False
        if queue.port is not None:
            return self._device.on_kick(index)
        max_chains = None
        if queue.engine is not None:
            if self._device.gate is None and not self._withheld:
                ended = queue.turn_of_engine(queue.engine, ring, counters)
                if ended != ENGINE_PYTHON:
                    return ended == ENGINE_MORE
                max_chains = 1
            queue.take_from_engine()
        try:
            wants_interrupt = serve_queue(
                self._device, index, ring, counters, self._log, max_chains
            )
        except QueueError as error:
            queue.abandon()
            self._log.warning("%s queue %d: %s", self._device.name, index, error)
            raise
        if wants_interrupt:
            self._interrupt(queue)
        return not ring.idle

    def _interrupt(self, queue: _ActiveQueue) -> None:
        if queue.call_fd < 0:
            return
        counters = self.counters
        signal_eventfd(queue.call_fd)
        counters.interrupts = interrupts = counters.interrupts + 1
        counters.cells[INTERRUPTS] = interrupts
