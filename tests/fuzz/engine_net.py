# SPDX-License-Identifier: BSD-3-Clause
"""Two network cards, one served by the engine with Python behind it, one by Python alone.

As in ``engine_disk.py`` both drivers make the same decisions, and after each step both cards must
have left the same: rings, buffers, frames that the host got, indices, counters, interrupts. A
datagram socket plays the TAP. In one half of the lives a turn is one frame, and nothing may differ;
in the other half interrupts are not compared.

Between two turns no card holds a chain that it may read again: the engine never does. And no buffer
for a frame from the host lies where a ring or an indirect table does: a chain that the engine
leaves to Python is read twice.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from devices.virtio.commands import SetLimits, SetLink
from devices.virtio.counters import named
from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.net import features as bits
from devices.virtio.net import native, receive, transmit
from devices.virtio.net.device import Net
from devices.virtio.net.native import NativeReceive, NativeTransmit
from devices.virtio.net.receive import ReceiveQueue
from devices.virtio.net.state import NetSpec
from devices.virtio.net.stats import NET_STATS
from devices.virtio.queue.split_queue import SplitQueue
from sys_util import log
from sys_util.errors import GuestError
from sys_util.event_loop import EPOLLIN, EPOLLOUT
from tests.fuzz.engine_disk import MANY, RINGS_BYTES, WHOLE_ONE_IN, Shares, size_for
from tests.fuzz.frames import FrameRing, arrival, buffers, sending
from tests.fuzz.kinds import small_memory
from tests.fuzz.ring_fuzzer import HEAP_GPA
from tests.fuzz.rings import HEAP_BYTES
from tests.fuzz.source import RandomSource, one_in, pick
from tests.support.device_context import DriverSide
from tests.support.net_rig import MAC

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.counters import Counters
    from tests.fuzz.source import Source

RECEIVE, TRANSMIT = 0, 1
OPTIONAL_FEATURES = (
    *(1 << bit for bit in (28, 29, bits.VIRTIO_NET_F_MRG_RXBUF, bits.VIRTIO_NET_F_CSUM)),
    *(1 << bit for bit in (bits.VIRTIO_NET_F_GUEST_CSUM, bits.VIRTIO_NET_F_GUEST_TSO4)),
    *(1 << bit for bit in (bits.VIRTIO_NET_F_HOST_TSO4, bits.VIRTIO_NET_F_HOST_ECN)),
)
MAX_ROUNDS = 2000


class Clock:
    """Stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Card:
    """One of the two, with its driver and its host."""

    def __init__(self, clock: Clock, *, engine: bool, exact: bool) -> None:
        self.host, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (self.host, end):
            sock.setblocking(False)
        self.clock = clock
        self.exact = exact
        self.device = Net(NetSpec(MAC, 1500, uso=True), [end.detach()], engine=engine)
        self.side = DriverSide(self.device, small_memory())
        self.features = self.side.worker.offered_features
        self.rings: dict[int, FrameRing] = {}
        self.broken: set[int] = set()
        self.backlog: list[bytes] = []
        self.arrived: list[bytes] = []

    def begin(self, source: Source) -> None:
        """Be a new driver."""
        side = self.side
        side.features = self.features
        for feature in OPTIONAL_FEATURES:
            if one_in(source, 4):
                side.features &= ~feature
        side.device.activate(side.features)
        for index in (RECEIVE, TRANSMIT):
            size = size_for(source, side.features)
            self.try_to(lambda index=index, size=size: self.start(source, index, size))  # type: ignore[misc]

    def start(self, source: Source, index: int, size: int) -> None:
        """Start a queue whose driver is hostile."""
        self.side.start_queue(index, size=size)
        ring = FrameRing(self.side.memory, self.side.queues[index], source, HEAP_GPA * (index + 1))
        event_idx = self.side.features >> VIRTIO_RING_F_EVENT_IDX & 1
        if not self.side.features >> VIRTIO_RING_F_INDIRECT_DESC & 1:
            ring.TABLE_ONE_IN = 40
        # The wish for kicks without an event index is a flag, which the engine changes otherwise.
        ring.apart = index == RECEIVE or not (self.exact and event_idx)
        self.rings[index] = ring

    def try_to(self, action: Callable[[], object]) -> None:
        """Do what may break a queue, as the device's process does."""
        try:
            action()
        except GuestError:
            self.broken |= {*self.side.worker.abandon_own_queues()}

    def step(self, source: Source) -> None:
        """Do one of the things that drivers do, the host, and the vmm."""
        if len(self.rings) < 2:
            return
        action = source.below(60)
        if action < 6:
            self.disturb(source, action)
        elif action < 20:
            self.offer(source, RECEIVE)
        elif action < 34:
            self.offer(source, TRANSMIT)
        elif action < 50:
            self.backlog += [arrival(source) for _ in range(1 + source.below(16))]
        elif action < 53:
            offloads = self.side.features & bits.GUEST_OFFLOADS & source.bits(64)
            self.device.set_guest_offloads(offloads)
        elif action < 56:
            seconds = pick(source, (0.01, 0.5, 1.0))
            self.clock.now += seconds
            self.try_to(lambda: self.side.context.advance(seconds))
        self.settle()
        if not one_in(source, 4):
            self.take()
            self.settle()

    def disturb(self, source: Source, action: int) -> None:
        """Do what is rare."""
        index = source.below(2)
        worker = self.side.worker
        if action == 0:
            self.rings[index].garbage()
        elif action == 1:
            self.rings[index].scribble_used()
            worker.stop_queue(index)
            self.broken.discard(index)
            self.try_to(lambda: self.side.start_queue(index, resume=True))
        elif action == 2:
            worker.pause()
            worker.resume()
        elif action == 3:
            self.device.command(SetLink(up=False))
            self.settle()
            self.device.command(SetLink(up=True))
        elif action == 4:
            worker.states()
        else:
            limit = one_in(source, 3) * MANY
            self.device.command(SetLimits((None, None, None, limit, None, 1000)))

    def offer(self, source: Source, index: int) -> None:
        """Offer some buffers, or some frames."""
        ring = self.rings[index]
        for _ in range(1 + source.below(20)):
            ring.offer(*(([], buffers(source)) if index == RECEIVE else (sending(source), [])))
        ring.publish()
        self.kick(index)

    def kick(self, index: int) -> None:
        """Kick a queue, for ``settle``."""
        if index in self.side.queues:
            self.side.kick_unserved(index)

    def settle(self) -> None:
        """Give every queue and the host's end turns until two rounds have brought nothing.

        In a round without a frame Python, like the engine, looks at the buffers for the next one.
        """
        quiet = 0
        for _ in range(MAX_ROUNDS):
            self._send_backlog()
            asked = self.side.context.turns_wanted
            more = [self._turn(index) for index in (RECEIVE, TRANSMIT)]
            ready = self._ready()
            if ready:
                callback = self.side.context.fds[self.device.ends[0].fd][0]
                self.try_to(lambda callback=callback, ready=ready: callback(ready))  # type: ignore[misc]
            busy = ready or any(more) or self.side.context.turns_wanted != asked
            quiet = 0 if busy else quiet + 1
            if quiet == 2:
                return
        raise AssertionError("turns without an end")

    def _turn(self, index: int) -> bool:
        more = []
        self.try_to(lambda: more.append(self.side.worker.on_kick(index)))
        return more == [True]

    def _ready(self) -> int:
        """Return the events of the host's end that the card waits for."""
        fd = self.device.ends[0].fd
        if fd not in self.side.context.fds:
            return 0
        poll = select.poll()
        poll.register(fd, self.side.context.fds[fd][1] & (EPOLLIN | EPOLLOUT))
        return sum(events for _, events in poll.poll(0))

    def _send_backlog(self) -> None:
        with suppress(BlockingIOError):
            while self.backlog:
                self.host.send(self.backlog[0])
                del self.backlog[0]

    def take(self) -> None:
        """Let the host take the frames that were sent."""
        with suppress(BlockingIOError):
            while True:
                self.arrived.append(self.host.recv(1 << 17))

    def left(self) -> dict[str, object]:
        """Return what a step leaves, but the memory."""
        worker = self.side.worker
        counters = worker.counters
        shown = named(counters.cells, NET_STATS)
        # For a queue that broke in a turn Python leaves the interrupt to the vmm.
        seen = {index: self.side.interrupted(index) for index in self.side.queues}
        return {
            "arrived": self.arrived,
            "states": worker.states(),
            "broken": set(self.broken),
            "interrupted": [told for at, told in seen.items() if at not in self.broken]
            if self.exact
            else [],
            "counted": (counters.requests, counters.errors, counters.kicks),
            "bytes": (counters.bytes_from_guest, counters.bytes_to_guest),
            "stats": [value for name, value in shown.items() if name in NET_STATS],
            "config": self.device.config(),
        }

    def forget_wishes(self) -> None:
        """Blank the flags of the used rings, where the device asks for kicks."""
        for queue in self.side.queues.values():
            self.side.memory.write(queue.used_ring, bytes(2))

    def memory(self, *, whole: bool) -> list[bytes]:
        """Return guest memory, or the places where something is meant to happen."""
        self.forget_wishes()
        memory = self.side.memory
        if whole:
            return [memory.read(region.gpa, region.size_bytes) for region in memory.regions]
        places = [(0, RINGS_BYTES), (HEAP_GPA, 3 * HEAP_BYTES), (2 * HEAP_GPA, HEAP_BYTES)]
        return [memory.read(gpa, length) for gpa, length in places]

    def end(self) -> None:
        """Reset the device, and let the host forget everything."""
        self.device.command(SetLimits((None, None, None, 0, None, 1000)))
        self.side.reset()
        self.rings.clear()
        self.broken.clear()
        self.backlog.clear()
        self.take()
        self.arrived.clear()
        self.device.ends[0].return_error(0)  # type: ignore[attr-defined]  # the ends are TAPs
        self.device._served[0]._receive.drain()

    def close(self) -> None:
        self.side.close()
        self.device.ends[0].close()
        self.host.close()
        self.side.memory.close()


class Differential:
    """The two of them. ``native`` of ``mutations`` chains were served by the engine."""

    def __init__(self, source: Source) -> None:
        log.set_sink(lambda _level, _module, _text: None)
        self.shares = Shares("card")
        self._exact = one_in(source, 2)
        self._kept: list[tuple[object, str, object]] = []
        clocks = [Clock(), Clock()]
        self._patch(receive, "time", clocks[0])
        if self._exact:
            for module in (native, receive, transmit):
                self._patch(module, "MAX_FRAMES_PER_TURN", 1)
        self._count_turns()
        self._publish_each()
        self._release_each()
        self._cards = [
            Card(clock, engine=engine, exact=self._exact)
            for clock, engine in zip(clocks, (True, False), strict=True)
        ]

    def _patch(self, owner: object, name: str, value: object) -> None:
        self._kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _count_turns(self) -> None:
        for kind in (NativeReceive, NativeTransmit):
            turn = kind.turn

            def counted(
                queue: NativeReceive, counters: Counters, turn: Callable[..., int] = turn
            ) -> int:
                before = counters.requests
                ended = turn(queue, counters)
                self.shares.native += counters.requests - before
                return ended

            self._patch(kind, "turn", counted)

    def _publish_each(self) -> None:
        """Show each chain at once, as the engine does: a frame that is sent may be a ring."""
        add_used = SplitQueue.add_used

        def add_and_publish(queue: SplitQueue, head: int, written: int) -> None:
            self.shares.by_python += self.shares.counted
            add_used(queue, head, written)
            queue.publish()

        self._patch(SplitQueue, "add_used", add_and_publish)

    def _release_each(self) -> None:
        """Hold no chain between two turns."""
        pump = ReceiveQueue.pump

        def pump_and_release(queue: ReceiveQueue) -> bool:
            more = pump(queue)
            if queue.port is not None:
                queue.release(queue.port)
            return more

        self._patch(ReceiveQueue, "pump", pump_and_release)

    @property
    def mutations(self) -> int:
        """How many chains reached each."""
        return self.shares.chains

    def episode(self, source: Source) -> None:
        """Live through two drivers that are the same."""
        self.shares.counted = True
        seed = str(source.bits(64))
        sources = [RandomSource(seed), RandomSource(seed)]
        self._both(sources, Card.begin)
        for _ in range(2 + source.below(12)):
            self._both(sources, Card.step)
            by_engine, by_python = (card.left() for card in self._cards)
            differing = [name for name in by_engine if by_engine[name] != by_python[name]]
            assert not differing, [(by_engine[name], by_python[name]) for name in differing]
        whole = one_in(source, WHOLE_ONE_IN)
        engine_memory, python_memory = (card.memory(whole=whole) for card in self._cards)
        assert engine_memory == python_memory, "the memories differ"
        for card in self._cards:
            card.end()
        self.shares.counted = False

    def _both(self, sources: list[RandomSource], act: Callable[[Card, Source], None]) -> None:
        for card, source in zip(self._cards, sources, strict=True):
            setattr(receive, "time", card.clock)  # noqa: B010 - mypy knows a module
            act(card, source)

    def close(self) -> None:
        """Give everything back."""
        for owner, name, value in reversed(self._kept):
            setattr(owner, name, value)
        log.set_sink(log.stderr_sink)
        for card in self._cards:
            card.close()
        self._cards = []
        self.shares.check()
