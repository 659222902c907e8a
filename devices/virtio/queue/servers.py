# SPDX-License-Identifier: BSD-3-Clause
"""Who serves a started queue: Python or the engine, the device itself, or the host's kernel.

``QueueWorker`` starts one server for each queue, and knows no more of it than ``QueueServer`` says.
A server does a bounded amount of work in a turn, and never waits.
"""

from __future__ import annotations

from os import eventfd_read

from devices.virtio.counters import INTERRUPTS, KICKS, NATIVE, PYTHON, VHOST
from devices.virtio.device import serve_queue
from devices.virtio.queue.engine_queue import ENGINE_MORE, ENGINE_PYTHON
from devices.virtio.queue.split_queue import QueueError
from sys_util.eventfd import signal_eventfd
from sys_util.typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from devices.virtio.backend import Server
    from devices.virtio.counters import Counters
    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue.engine_queue import EngineQueue
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.queue.split_queue import SplitQueue
    from sys_util.log import Logger


class QueueServer(Protocol):
    """One started queue. It owns no descriptor; ``call_fd`` is -1 for one without an interrupt."""

    call_fd: int

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

    def __init__(self, ring: SplitQueue, kick_fd: int, call_fd: int, counters: Counters) -> None:
        self._ring: SplitQueue | None = ring
        self._counters = counters
        self.kick_fd = kick_fd
        self.call_fd = call_fd

    def ring(self) -> SplitQueue | None:
        return self._ring

    def take_kick(self) -> None:
        counters = self._counters
        try:
            eventfd_read(self.kick_fd)
        except BlockingIOError:
            return  # no kick came: this is one more turn for the same chains
        counters.kicks = kicks = counters.kicks + 1
        counters.cells[KICKS] = kicks

    def abandon(self) -> None:
        self._ring = None

    def stop(self) -> None:
        self.abandon()


class ChainServer(_RingServer):
    """The common loop: chains in the order of the ring, by Python or, if there is one, the engine.

    The engine serves whole turns and leaves to Python each chain that it does not know. While
    requests have limits, Python serves.
    """

    port = None
    is_devices_own = False

    def __init__(
        self,
        device: VirtioDevice,
        index: int,
        ring: SplitQueue,
        fds: tuple[int, int],
        counters: Counters,
        log: Logger,
        engine: EngineQueue | None,
    ) -> None:
        """``fds`` are those of kick and call; a call of -1 is for a queue without an interrupt."""
        super().__init__(ring, *fds, counters)
        self._device = device
        self._index = index
        self._log = log
        self._engine = engine
        self._in_engine = False  # the engine has the position of the queue, and the ring an old one

    @property
    def who(self) -> Server:
        if self._ring is None:
            return "nobody"
        return "engine" if self._in_engine else "device"

    @property
    def engine(self) -> str:
        return PYTHON if self._engine is None or self._device.gate is not None else NATIVE

    def ring(self) -> SplitQueue | None:
        if self._in_engine and self._engine is not None and self._ring is not None:
            self._ring.go_on(self._engine.take())
            self._in_engine = False
        return self._ring

    def turn(self) -> bool:
        max_chains = None
        if self._engine is not None and self._ring is not None and self._device.gate is None:
            ended = self._turn_of_engine(self._engine, self._ring)
            if ended != ENGINE_PYTHON:
                return ended == ENGINE_MORE
            max_chains = 1
        ring = self.ring()
        if ring is None:
            return False
        device = self._device
        try:
            wants_interrupt = serve_queue(
                device, self._index, ring, self._counters, self._log, max_chains
            )
        except QueueError as error:
            self.abandon()
            self._log.warning("%s queue %d: %s", device.name, self._index, error)
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

    def abandon(self) -> None:
        super().abandon()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _turn_of_engine(self, engine: EngineQueue, ring: SplitQueue) -> int:
        if not self._in_engine:
            engine.give(ring.handover())
            self._in_engine = True
        return engine.turn(self._counters)

    def _interrupt(self) -> None:
        if self.call_fd < 0:
            return
        counters = self._counters
        signal_eventfd(self.call_fd)
        counters.interrupts = interrupts = counters.interrupts + 1
        counters.cells[INTERRUPTS] = interrupts


class PortServer(_RingServer):
    """A device that serves the queue itself, through a port. It may leave turns to an engine."""

    def __init__(
        self,
        device: VirtioDevice,
        index: int,
        ring: SplitQueue,
        fds: tuple[int, int],
        counters: Counters,
        port: QueuePort,
    ) -> None:
        super().__init__(ring, *fds, counters)
        self._device = device
        self._index = index
        self._port = port

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
        return self._ring is not None and self._device.on_kick(self._index)

    def pause(self, *, paused: bool) -> None:
        self._port.paused = paused

    def flush(self) -> None:
        self._port.flush()

    def show_used(self) -> None:
        self._port.flush()

    def abandon(self) -> None:
        super().abandon()
        self._port.close()


class KernelServer:
    """The host's kernel, which reads the kicks and sends the interrupts by itself."""

    who: Server = "kernel"
    engine = VHOST
    port = None
    is_devices_own = True

    def __init__(self, device: VirtioDevice, index: int, call_fd: int) -> None:
        self._device = device
        self._index = index
        self.call_fd = call_fd

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
        self._device.stop_kernel_queue(self._index)
