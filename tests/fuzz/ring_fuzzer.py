# SPDX-License-Identifier: BSD-3-Clause
"""Attack a device through its queues, and see that it keeps what every device promises.

One episode is one driver: it starts the device, offers chains that are wrong in some way or
another, resets it, and then behaves: a good request must be served. ``WatchedQueue`` checks each
chain; the rest is checked here.
"""

from __future__ import annotations

import gc
import os
import select
import time
from typing import TYPE_CHECKING

from devices.virtio.queue.chain_loop import MAX_CHAINS_PER_TURN
from sys_util import log
from sys_util.errors import GuestError
from tests.fuzz.rings import HEAP_BYTES, HostileRing
from tests.fuzz.source import number, one_in, pick
from tests.fuzz.watched import TALLY, changing_memory, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.kinds import Kind
    from tests.fuzz.source import Source

SIZES = (1, 2, 4, 8, 8, 8, 16, 64)
HEAP_GPA = 0x10_0000
# Event index, indirect tables, and the features of the devices themselves: taken or not.
OPTIONAL_FEATURES = (1 << 29, 1 << 28, 1 << 15, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 22)

# Pops in one call of the device: a turn, and what devices with queues of their own do at most.
MAX_POPS_PER_TURN = 2 * MAX_CHAINS_PER_TURN + 64
# Turns until a device has served what a driver left: the number of chains is below the queue size.
MAX_TURNS = 300
# What a process may grow by beyond the guest's memory: no request makes a copy of gigabytes.
MAX_GROWTH_KIB = 96 * 1024
# Each logger writes 10 lines in 5 s.
LINES_PER_PERIOD = 10
LOG_PERIOD_SECONDS = 5.0
MAX_LOGGERS = 10


class RingFuzzer:
    """Drivers of one device, one after the other."""

    def __init__(self, kind: Callable[[Source], Kind], source: Source) -> None:
        self.mutations = 0
        self.restarts = 0
        self._began = time.monotonic()
        self._lines = 0
        _forget_peak()
        self._peak_kib = _peak_kib()
        self._fds = _open_fds()
        log.set_sink(self._count_line)
        self._kind = kind(source)
        self._side = self._kind.side
        self._all_features = self._side.worker.offered_features
        self._broken: set[int] = set()
        self._abandoned: set[int] = set()  # with these, callbacks are held back
        self._rings: dict[int, HostileRing] = {}

    def episode(self, source: Source) -> None:
        """Live through one driver."""
        with watching():
            if one_in(source, 4):
                with changing_memory(lambda view: _scribble(source, view)):
                    self._attack(source)
            else:
                self._attack(source)
            self._recover()
        self._check_bounds()

    def _attack(self, source: Source) -> None:
        side, self._broken, self._abandoned = self._side, set(), set()
        side.features = self._all_features
        for feature in OPTIONAL_FEATURES:
            if one_in(source, 3):
                side.features &= ~feature
        side.device.activate(side.features)
        for index, limit in enumerate(side.device.queue_sizes):
            if not one_in(source, 12):
                self._start(source, index, min(limit, pick(source, SIZES)))
        for _ in range(1 + source.below(8)):
            if not self._rings:
                break
            self._step(source)
        self.mutations += sum(ring.mutations for ring in self._rings.values())

    def _step(self, source: Source) -> None:
        """Do one of the things that drivers do."""
        index = pick(source, tuple(self._rings))
        ring = self._rings[index]
        action = source.below(20)
        if action == 0:
            ring.garbage()
        elif action == 1:
            self._restart(source, index)
        elif action == 2:
            self._side.worker.pause()
            self._guard(lambda: self._side.kick(index))
            self._guard(self._side.worker.resume)
        elif action == 3:
            data = number(source, 64).to_bytes(8, "little")[: 1 << source.below(4)]
            self._guard(lambda: self._side.device.write_config(number(source, 16) % 64, data))
            self.mutations += 1
        elif action == 4:
            self.restarts += 1
            self._guard(lambda: self._kind.restart(source))
        else:
            for _ in range(1 + source.below(6)):
                ring.offer(*self._kind.request(source, index))
            ring.publish()
        if one_in(source, 3):
            self._guard(lambda: self._kind.host_acts(source))
        self._serve(index)
        self._settle()

    def _start(self, source: Source, index: int, size: int) -> None:
        side = self._side
        self._guard(lambda: side.start_queue(index, size=size))
        ring = HostileRing(side.memory, side.queues[index], source, HEAP_GPA * (index + 1))
        self._rings[index] = ring

    def _restart(self, source: Source, index: int) -> None:
        """Let a queue be taken up where the ring says that it stood: the guest wrote that, too."""
        if one_in(source, 2):
            self._rings[index].scribble_used()
            self._rings[index].mutations += 1
        self._side.worker.stop_queue(index)
        self._broken.discard(index)
        self._abandoned.discard(index)
        self._guard(lambda: self._side.start_queue(index, resume=True))

    def _guard(self, action: Callable[[], object]) -> None:
        """Carry out what may fail by the guest's fault, as the device's process does."""
        before = TALLY.pops
        try:
            action()
        except GuestError:
            self._abandon()
        assert TALLY.pops - before <= MAX_TURNS * MAX_POPS_PER_TURN

    def _serve(self, index: int) -> None:
        """Kick a queue and give it as many turns as it asks for."""
        worker = self._side.worker
        os.eventfd_write(self._side.kick_fd(index), 1)
        for _ in range(MAX_TURNS):
            before = TALLY.pops
            try:
                more = worker.on_kick(index)
            except GuestError:
                self._broken.add(index)
                self._abandon()
                return
            assert TALLY.pops - before <= MAX_POPS_PER_TURN, "a turn without an end"
            if not more:
                return
        raise AssertionError(f"queue {index} asks for turns without an end")

    def _abandon(self) -> None:
        abandoned = self._side.worker.abandon_own_queues()
        self._broken.update(abandoned)
        self._abandoned.update(abandoned)

    def _settle(self) -> None:
        """Let the device see what there is to be seen, unless it waits for a reset."""
        context = self._side.context
        for _ in range(MAX_TURNS):
            if self._abandoned:
                return
            self._guard(lambda: context.advance(0))
            poll = select.poll()
            for fd, (_, events) in context.fds.items():
                poll.register(fd, events)
            ready = poll.poll(0)
            if not ready:
                return
            for fd, events in ready:
                if fd in context.fds:
                    callback = context.fds[fd][0]
                    self._guard(lambda call=callback, seen=events: call(seen))  # type: ignore[misc]
        raise AssertionError("the device is busy with nothing")

    def _recover(self) -> None:
        """Reset the device and drive it as it should be."""
        self._side.reset()
        self._rings.clear()
        self._side.features = self._all_features & ~(1 << 29)
        self._kind.serves()
        self._side.reset()

    def _check_bounds(self) -> None:
        periods = 1 + (time.monotonic() - self._began) / LOG_PERIOD_SECONDS
        bound = LINES_PER_PERIOD * MAX_LOGGERS * (periods + self.restarts)
        assert self._lines <= bound, "the log is flooded"
        assert _peak_kib() - self._peak_kib <= MAX_GROWTH_KIB, "memory grows"

    def _count_line(self, _level: int, _module: str, _text: str) -> None:
        self._lines += 1

    def close(self) -> None:
        """End the device and see that nothing of it is left."""
        log.set_sink(log.stderr_sink)
        self._kind.close()
        self._rings.clear()
        del self._kind, self._side
        gc.collect()  # memory stays mapped as long as there is a view of it
        assert _open_fds() <= self._fds, "descriptors are left open"


def _scribble(source: Source, view: memoryview) -> None:
    """Change a byte of guest memory, most of the time."""
    if len(view) and not one_in(source, 3):
        view[source.below(len(view))] = source.bits(8)


def _peak_kib() -> int:
    """Return the most memory that this process had since ``_forget_peak`` (proc_pid_status(5))."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def _forget_peak() -> None:
    """Begin anew with what this process has now (proc_pid_clear_refs(5))."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
        peak.write("5")


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


assert HEAP_BYTES <= HEAP_GPA
