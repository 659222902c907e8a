# SPDX-License-Identifier: BSD-3-Clause
"""Who serves a started queue: Python, the engine, the device itself, or the host's kernel.

The device makes one server for each queue (``VirtioDevice.make_server``), and ``QueueWorker`` knows
no more of it than ``QueueServer`` says. A server does a bounded amount of work in a turn, and never
waits.
"""

from __future__ import annotations

from os import eventfd_read

from devices.virtio.counters import INTERRUPTS, KICKS, NATIVE, PYTHON, VHOST
from devices.virtio.queue.chain_loop import serve_queue
from devices.virtio.queue.engine_queue import ENGINE_MORE, ENGINE_PYTHON
from devices.virtio.queue.port import QueuePort
from devices.virtio.queue.split_queue import QueueError
from sys_util.eventfd import signal_eventfd
from sys_util.typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.backend import QueueActivation, Server
    from devices.virtio.counters import Counters
    from devices.virtio.queue.chain_loop import ChainHandler
    from devices.virtio.queue.engine_queue import EngineQueue
    from devices.virtio.queue.split_queue import SplitQueue
    from sys_util.guest_memory import GuestMemory
    from sys_util.log import Logger


class StartedQueue(NamedTuple):
    """A queue that the driver has enabled, as its server gets it. ``SplitQueue`` has checked it.

    The worker's caller owns both descriptors of ``activation``; its ``call_fd`` is -1 for a queue
    without an interrupt. ``label`` is the device's name, for logs. ``paused``: the device rests.
    """

    label: str
    activation: QueueActivation
    features: int
    ring: SplitQueue
    memory: GuestMemory
    counters: Counters
    log: Logger
    paused: bool = False

    @property
    def number(self) -> int:
        """Which queue of the device it is."""
        return self.activation.index


class QueueServer(Protocol):
    """One started queue. It owns no descriptor."""

    @property
    def takes_kicks(self) -> bool:
        """Whether this process reads the kicks; else it must not even wait for them."""
        ...

    @property
    def who(self) -> Server:
        """Who serves now: one of the words that ``QueuePosition`` names."""
        ...

    @property
    def engine(self) -> str:
        """Which engine serves the queue while nothing changes: see ``counters.engine_of``."""
        ...

    @property
    def port(self) -> QueuePort | None:
        """The port of a queue that the device serves itself; ``None`` once it is unusable."""
        ...

    @property
    def is_devices_own(self) -> bool:
        """Whether an error of the device, and not of one of its chains, ends this queue, too."""
        ...

    def ring(self) -> SplitQueue | None:
        """Return the ring, which knows the position; ``None`` if it is unusable or the kernel's."""
        ...

    def take_kick(self) -> None:
        """Take a kick that came, and count it."""
        ...

    def turn(self) -> bool:
        """Serve for a bounded time; return whether there is more, which no kick will announce.

        Raises:
            QueueError: the driver made the queue unusable; it is served no more.
            GuestError: the device gave up one of the queues that it serves itself.
        """
        ...

    def pause(self, *, paused: bool) -> None:
        """Learn whether the device rests; the worker asks for no turn meanwhile."""
        ...

    def flush(self) -> None:
        """Finish the requests that are under way."""
        ...

    def show_used(self) -> None:
        """Publish used chains that were withheld; interrupt the driver if it wants that."""
        ...

    def abandon(self) -> None:
        """Never touch the queue's memory again."""
        ...

    def stop(self) -> None:
        """Do what ``abandon`` does, and tell the device, engine or kernel that serves the queue."""
        ...


class _RingServer:
    """What the servers have in common whose kicks this process reads."""

    takes_kicks = True

    def __init__(self, queue: StartedQueue) -> None:
        self._queue = queue
        self._ring: SplitQueue | None = queue.ring
        self._counters = queue.counters
        self._kick_fd = queue.activation.kick_fd

    def ring(self) -> SplitQueue | None:
        return self._ring

    def take_kick(self) -> None:
        counters = self._counters
        try:
            eventfd_read(self._kick_fd)
        except BlockingIOError:
            return  # no kick came: this is one more turn for the same chains
        counters.kicks = kicks = counters.kicks + 1
        counters.cells[KICKS] = kicks

    def abandon(self) -> None:
        self._ring = None

    def stop(self) -> None:
        self.abandon()


class ChainServer(_RingServer):
    """The common loop: chains in the order of the ring."""

    port = None
    is_devices_own = False

    def __init__(self, queue: StartedQueue, handler: ChainHandler) -> None:
        super().__init__(queue)
        self._handler = handler

    @property
    def who(self) -> Server:
        return "nobody" if self._ring is None else "device"

    @property
    def engine(self) -> str:
        return PYTHON

    def turn(self) -> bool:
        return self._turn_of_loop()

    def _turn_of_loop(self, max_chains: int | None = None) -> bool:
        ring = self.ring()
        if ring is None:
            return False
        queue = self._queue
        try:
            wants_interrupt = serve_queue(
                self._handler, queue.number, ring, self._counters, queue.log, max_chains
            )
        except QueueError as error:
            self.abandon()
            queue.log.warning("%s queue %d: %s", queue.label, queue.number, error)
            raise
        if wants_interrupt:
            self._interrupt()
        return not ring.idle

    def pause(self, *, paused: bool) -> None:
        """Nothing is ever in flight between two turns."""

    def flush(self) -> None:
        """Nothing is ever in flight between two turns."""

    def show_used(self) -> None:
        ring = self.ring()
        if ring is None:
            return
        ring.publish()
        if ring.wants_interrupt():
            self._interrupt()

    def _interrupt(self) -> None:
        call_fd, counters = self._queue.activation.call_fd, self._counters
        if call_fd < 0:
            return
        signal_eventfd(call_fd)
        counters.interrupts = interrupts = counters.interrupts + 1
        counters.cells[INTERRUPTS] = interrupts


class EngineServer(ChainServer):
    """The engine serves whole turns and leaves to Python each chain that it does not know.

    While requests have limits, Python serves.
    """

    def __init__(self, queue: StartedQueue, handler: ChainHandler, engine: EngineQueue) -> None:
        super().__init__(queue, handler)
        self._engine: EngineQueue | None = engine
        self._in_engine = False  # the engine has the position of the queue, and the ring an old one

    @property
    def who(self) -> Server:
        return "engine" if self._in_engine and self._ring is not None else super().who

    @property
    def engine(self) -> str:
        return PYTHON if self._engine is None or self._handler.gate is not None else NATIVE

    def ring(self) -> SplitQueue | None:
        if self._in_engine and self._engine is not None and self._ring is not None:
            self._ring.go_on(self._engine.take())
            self._in_engine = False
        return self._ring

    def turn(self) -> bool:
        engine, ring = self._engine, self._ring
        if engine is None or ring is None or self._handler.gate is not None:
            return self._turn_of_loop()
        if not self._in_engine:
            engine.give(ring.handover())
            self._in_engine = True
        ended = engine.turn(self._counters)
        return self._turn_of_loop(1) if ended == ENGINE_PYTHON else ended == ENGINE_MORE

    def abandon(self) -> None:
        super().abandon()
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class PortServer(_RingServer):
    """A device that serves the queue itself, through a port. It may leave turns to an engine."""

    def __init__(
        self, queue: StartedQueue, serve: Callable[[int], bool], engine: EngineQueue | None = None
    ) -> None:
        """``serve(index)`` serves for a bounded time; see ``QueueServer.turn`` for its answer.

        It is called when the queue has started, goes on, or has got more chains.
        """
        super().__init__(queue)
        self._serve = serve
        self._port = QueuePort(
            *(queue.label, queue.number, queue.ring, queue.activation.call_fd),
            *(queue.counters, queue.log, engine),
        )
        self._port.paused = queue.paused
        self._port.resumed = queue.activation.resume

    @property
    def who(self) -> Server:
        if self._ring is None:
            return "nobody"
        return "port (engine)" if self._port.in_engine else "port"

    @property
    def engine(self) -> str:
        return NATIVE if self._port.has_engine else PYTHON

    def ring(self) -> SplitQueue | None:
        return self._port.ring

    @property
    def port(self) -> QueuePort | None:
        return None if self._ring is None else self._port

    @property
    def is_devices_own(self) -> bool:
        return self._ring is not None

    def turn(self) -> bool:
        return self._ring is not None and self._serve(self._queue.number)

    def pause(self, *, paused: bool) -> None:
        self._port.paused = paused

    def flush(self) -> None:
        self._port.flush()

    def show_used(self) -> None:
        self._port.flush()

    def abandon(self) -> None:
        super().abandon()
        self._port.close()


class KernelRings(Protocol):
    """A device, or the part of it, that hands rings to the host's kernel (vhost)."""

    def start_ring(self, activation: QueueActivation, next_avail: int) -> None:
        """Hand a checked queue to the kernel, which goes on at ``next_avail``."""
        ...

    def stop_ring(self, index: int) -> None:
        """Take a queue back from the kernel: its memory is not touched after this."""
        ...


class KernelServer:
    """The host's kernel, which reads the kicks and sends the interrupts by itself."""

    takes_kicks = False
    who: Server = "kernel"
    engine = VHOST
    port = None
    is_devices_own = True

    def __init__(self, queue: StartedQueue, rings: KernelRings) -> None:
        self._rings = rings
        self._index = queue.number
        rings.start_ring(queue.activation, queue.ring.state().next_avail)

    def ring(self) -> SplitQueue | None:
        return None

    def take_kick(self) -> None:
        """The kernel takes it."""

    def turn(self) -> bool:
        return False

    def pause(self, *, paused: bool) -> None:
        """The device does that for all of its queues."""

    def flush(self) -> None:
        """The device does that for all of its queues."""

    def show_used(self) -> None:
        """Nothing of the kernel's is withheld."""

    def abandon(self) -> None:
        """This process has not mapped the ring."""

    def stop(self) -> None:
        self._rings.stop_ring(self._index)
