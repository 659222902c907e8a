# SPDX-License-Identifier: BSD-3-Clause
"""A device with queues of its own, a driver for each of them, and a loop that the test turns."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from zlib import crc32

from devices.virtio.counters import Counters
from devices.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
from devices.virtio.queue.worker import QueueWorker
from devices.virtio.saved_state import SavedState
from sys_util.event_loop import EPOLLIN, Timer
from tests.support.driver_queue import DriverQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.device import VirtioDevice
    from sys_util.guest_memory import GuestMemory

_RINGS = 0x1000
_QUEUE_SPACING = 0x4000
_HEAP = 0x100000
_HEAP_SPACING = 0x100000


class FakeContext:
    """A ``DeviceContext``. Nothing happens unless the test calls ``fire`` or ``advance``."""

    def __init__(
        self, memory: GuestMemory, worker: QueueWorker, saved: SavedState | None = None
    ) -> None:
        self.memory = memory
        self.saved = SavedState() if saved is None else saved
        self.counters = worker.counters
        self.port = worker.port
        self.fds: dict[int, tuple[Callable[[int], None], int]] = {}
        self.timers: list[Timer] = []
        self.now = 0.0
        self.config_changes = 0
        self.config_changes_by_driver = 0
        self.turns_wanted = 0
        self.asked_blocks: list[tuple[int, int, int]] = []  # the vmm answers them
        self.on_blocks: Callable[[bool], None] = lambda _done: None

    def add_fd(self, fd: int, callback: Callable[[int], None], *, events: int = EPOLLIN) -> None:
        assert fd not in self.fds
        self.fds[fd] = (callback, events)

    def modify_fd(self, fd: int, events: int) -> None:
        self.fds[fd] = (self.fds[fd][0], events)

    def remove_fd(self, fd: int) -> None:
        del self.fds[fd]

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, callback)
        self.timers.append(timer)
        return timer

    def serve_again(self) -> None:
        self.turns_wanted += 1

    def config_changed(self, *, by_driver: bool = False) -> None:
        if by_driver:
            self.config_changes_by_driver += 1
        else:
            self.config_changes += 1

    def change_blocks(
        self, kind: int, first: int, count: int, then: Callable[[bool], None]
    ) -> None:
        self.asked_blocks.append((kind, first, count))
        self.on_blocks = then

    def fire(self, fd: int, events: int = EPOLLIN) -> None:
        """Say that ``fd`` is ready, if the device listens for that."""
        callback, wanted = self.fds[fd]
        assert wanted & events
        callback(events)

    def advance(self, seconds: float) -> None:
        """Let time pass, and every timer run out that is due by then, in order."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.callback and timer.deadline <= end]:
            timer = min(due, key=lambda timer: timer.deadline)
            self.now = max(self.now, timer.deadline)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self.timers = [timer for timer in self.timers if timer.callback]
        self.now = end


class DriverSide:
    """A driver of ``device``: ``queues[i]`` once ``start`` was called. Needs 4 MiB of memory."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        *,
        without: int = 1 << 29,
        saved: SavedState | None = None,
    ) -> None:
        """``without`` are feature bits that the driver does not take, by default event indices."""
        self.device = device
        self.memory = memory
        self.worker = QueueWorker(device, memory)
        self.context = FakeContext(memory, self.worker, saved)
        self.features = self.worker.offered_features & ~without
        self.queues: dict[int, DriverQueue] = {}
        self._kicks: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        device.attach(self.context)

    def start(self, *indices: int, size: int = 16) -> None:
        """Activate the device with these queues, all of them when none is named."""
        assert self.features >> VIRTIO_F_VERSION_1 & 1
        self.device.activate(self.features)
        for index in indices or range(len(self.device.queue_sizes)):
            self.start_queue(index, size=size)

    def start_queue(self, index: int, *, size: int = 16, resume: bool = False) -> None:
        event_idx = bool(self.features >> VIRTIO_RING_F_EVENT_IDX & 1)
        base, heap = _RINGS + index * _QUEUE_SPACING, _HEAP + index * _HEAP_SPACING
        if not resume:
            self.memory.write(base, bytes(_QUEUE_SPACING))
            self.queues[index] = DriverQueue(self.memory, size, base, heap, event_idx=event_idx)
        self._start_queue(index, resume=resume)
        self.worker.on_kick(index)

    def _start_queue(self, index: int, *, resume: bool) -> None:
        for fds in (self._kicks, self._calls):
            if index not in fds:
                fds[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        activation = self.queues[index].activation(
            index, self._kicks[index], self._calls[index], resume=resume
        )
        self.worker.start_queue(activation, self.features)

    def replace(self, device: VirtioDevice) -> None:
        """Let ``device`` go on, as the one of a new process; the old one is just dropped."""
        self.device = device
        counters = Counters(self.worker.counters.cells)
        self.worker = QueueWorker(device, self.memory, counters)
        self.context = FakeContext(self.memory, self.worker, self.context.saved)
        device.attach(self.context)
        device.activate(self.features)
        for index in self.queues:
            self._start_queue(index, resume=True)
        for index in self.queues:
            while self.worker.on_kick(index):
                pass

    def kick(self, index: int) -> None:
        """Kick a queue and let the device serve it to the end."""
        os.eventfd_write(self._kicks[index], 1)
        while self.worker.on_kick(index):
            pass

    def kick_unserved(self, index: int) -> None:
        """Kick a queue; nothing serves it before the test says so."""
        os.eventfd_write(self._kicks[index], 1)

    def seen(self) -> tuple[int, ...]:
        """Return a digest of the rings and of the saved state: what outlives a process."""
        rings = self.memory.read(_RINGS, _QUEUE_SPACING * len(self.device.queue_sizes))
        return (crc32(rings), crc32(self.context.saved._cells))

    def interrupted(self, index: int) -> bool:
        """Return whether the queue's interrupt came since the last question."""
        try:
            return os.eventfd_read(self._calls[index]) > 0
        except BlockingIOError:
            return False

    def kick_fd(self, index: int) -> int:
        """Return the eventfd that a queue is kicked by."""
        return self._kicks[index]

    def call_fd(self, index: int) -> int:
        """Return the eventfd of a queue's interrupt."""
        return self._calls[index]

    def reset(self) -> None:
        """Do what the driver's write of 0 to the status does."""
        for index in tuple(self.queues):
            self.worker.stop_queue(index)
        self.queues.clear()
        self.device.reset()

    def close(self) -> None:
        for fd in (*self._kicks.values(), *self._calls.values()):
            os.close(fd)
        self._kicks.clear()
        self._calls.clear()
