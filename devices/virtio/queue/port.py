# SPDX-License-Identifier: BSD-3-Clause
"""A queue that its device serves itself, for example when a TAP or a socket has data.

``serve_queue`` is for devices that answer each request at once. The others have a port for each of
their queues: they take chains when they need them, give them back when they are done, and end each
batch with one ``flush``. A device that has taken all chains and wants a kick for new ones calls
``wait``:

    while chain := port.take():
        ...
        port.give_back(chain)
    port.flush()
    if port.wait(): there are new chains already
"""

from __future__ import annotations

from collections import deque

from devices.virtio.counters import BYTES_FROM_GUEST, BYTES_TO_GUEST, INTERRUPTS, REQUESTS
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.engine_queue import ENGINE_PYTHON
from sys_util.eventfd import signal_eventfd
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.counters import Counters
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.engine_queue import EngineQueue
    from devices.virtio.queue.split_queue import SplitQueue
    from sys_util.log import Logger

# A driver may offer only malformed chains, faster than they are given back. After this many,
# ``take`` reports that there are no more, and ``wait`` then reports that there are.
MAX_MALFORMED: Final = 256

# ``_Taken.written`` of a chain that the device has not given back.
_HELD: Final = -1


class _Taken:
    """A chain that was taken and not yet put into the used ring; ``None`` for a malformed one."""

    __slots__ = ("chain", "head", "readable_bytes", "written")

    def __init__(self, chain: DescriptorChain | None, head: int, written: int) -> None:
        self.chain = chain
        self.head = head
        self.readable_bytes = 0 if chain is None else chain.reader.remaining
        self.written = written


class QueuePort:
    """An active queue. After the queue has stopped, it has no chains and ignores ``give_back``.

    With an engine, native code can serve it for a turn whenever no chain is taken.
    """

    __slots__ = (
        *("_call_fd", "_counters", "_engine", "_label", "_log", "_ring", "_taken", "in_engine"),
        *("index", "paused", "resumed", "size"),
    )

    def __init__(
        self,
        label: str,
        index: int,
        ring: SplitQueue,
        call_fd: int,
        counters: Counters,
        log: Logger,
        engine: EngineQueue | None = None,
    ) -> None:
        """The caller still owns ``call_fd``; -1 stands for a queue without an interrupt."""
        self.index = index
        self.size = ring.size
        self.paused = False
        self.resumed = False  # an earlier process of the device served this queue
        self._label = label
        self._ring: SplitQueue | None = ring
        self._call_fd = call_fd
        self._counters = counters
        self._log = log
        self._taken: deque[_Taken] = deque()  # the device holds the oldest
        self._engine = engine
        self.in_engine = False  # the engine has the position of the queue, and the ring an old one

    @property
    def ring(self) -> SplitQueue | None:
        """The ring at the position that the queue has reached; ``None`` once it has stopped."""
        ring = self._ring
        if self.in_engine and self._engine is not None and ring is not None:
            ring.go_on(self._engine.take())
            self.in_engine = False
        return ring

    @property
    def has_engine(self) -> bool:
        """Whether native code may serve this queue now."""
        return self._engine is not None and not self._engine.rests

    def turn_of_engine(self) -> int:
        """Have native code serve a turn; return one of the ``ENGINE_`` values.

        ``ENGINE_PYTHON`` also stands for a queue that nobody may serve now.
        """
        engine, ring = self._engine, self._ring
        if engine is None or ring is None or self.paused or ring.withheld or self._taken:
            return ENGINE_PYTHON
        if not self.in_engine:
            ring.publish()
            engine.give(ring.handover())
            self.in_engine = True
        return engine.turn(self._counters)

    def take(self) -> DescriptorChain | None:
        """Return the next good chain; ``None`` when there is none or the queue is paused.

        Malformed chains are given back here.

        Raises:
            QueueError: the ring is unusable; the device lets this pass to its caller.
        """
        ring = self.ring
        if ring is None or self.paused or ring.withheld:
            return None
        for _ in range(MAX_MALFORMED):
            try:
                chain = ring.pop()
            except ChainError as error:
                self._counters.count_error()
                self._log.warning("%s queue %d: %s", self._label, self.index, error)
                if self._taken:
                    self._taken.append(_Taken(None, error.head, 0))
                else:
                    ring.add_used(error.head, 0)
                continue
            if chain is None:
                return None
            if ring.idle:
                ring.disable_notification()
            taken = _Taken(chain, chain.head, _HELD)
            self._taken.append(taken)
            self._count_readable(taken.readable_bytes)
            return chain
        return None

    def put_back(self, chain: DescriptorChain) -> None:
        """Undo ``take`` of the last chain that the device holds; the next ``take`` reads it again.

        Chains taken after it are put back too, though they were given back: as one before them was
        held, the driver has not seen them.
        """
        ring = self._ring
        if ring is None:
            return
        last = None
        while last is not chain:
            taken = self._taken.pop()
            last = taken.chain
            self._count_readable(-taken.readable_bytes)
            ring.unpop()

    def put_back_all(self) -> bool:
        """Undo ``take`` of all chains that the device holds; return whether none is left.

        Nothing changes if malformed chains were taken after them: these would be counted twice.
        """
        if any(taken.written != _HELD for taken in self._taken):
            return False
        while self._taken:
            self._count_readable(-self._taken.pop().readable_bytes)
            if self._ring is not None:
                self._ring.unpop()
        return True

    @property
    def last_taken(self) -> int:
        """The place in the queue of the chain that ``take`` returned last: its avail index.

        A restarted process finds the same chain at the same place, as long as the queue runs.
        """
        ring = self._ring
        return 0 if ring is None else (ring.state().next_avail - 1) & 0xFFFF

    def _count_readable(self, length: int) -> None:
        counters = self._counters
        counters.bytes_from_guest = total = counters.bytes_from_guest + length
        counters.cells[BYTES_FROM_GUEST] = total

    def give_back(self, chain: DescriptorChain) -> None:
        """Give a chain back with what was written; the driver sees it after ``flush``."""
        ring = self._ring
        if ring is None:
            return
        waiting = self._taken
        if waiting[0].chain is not chain:
            for taken in waiting:
                if taken.chain is chain:
                    taken.written = chain.writer.written
            return
        waiting[0].written = chain.writer.written
        while waiting and waiting[0].written != _HELD:
            taken = waiting.popleft()
            ring.add_used(taken.head, taken.written)
            if taken.chain is not None:
                self._count_used(taken.written)

    def _count_used(self, written: int) -> None:
        counters = self._counters
        cells = counters.cells
        counters.requests = requests = counters.requests + 1
        cells[REQUESTS] = requests
        counters.bytes_to_guest = written = counters.bytes_to_guest + written
        cells[BYTES_TO_GUEST] = written

    def publish(self) -> None:
        """Show the driver what was given back; it is not interrupted before ``flush``."""
        ring = self.ring
        if ring is not None:
            ring.publish()

    def flush(self) -> None:
        """Show the driver what was given back, and interrupt it if it wants that."""
        ring = self.ring
        if ring is None:
            return
        ring.publish()
        if self._call_fd >= 0 and ring.wants_interrupt():
            signal_eventfd(self._call_fd)
            self._counters.interrupts = interrupts = self._counters.interrupts + 1
            self._counters.cells[INTERRUPTS] = interrupts

    def wait(self) -> bool:
        """Ask for a kick when the driver adds buffers; return whether it has some already.

        Raises:
            QueueError: the ring is unusable; the device lets this pass to its caller.
        """
        ring = self.ring
        if ring is None or self.paused or ring.withheld:
            return False
        self.flush()
        return ring.enable_notification()

    def close(self) -> None:
        """Forget the ring: its memory is not touched after this."""
        self._ring = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
