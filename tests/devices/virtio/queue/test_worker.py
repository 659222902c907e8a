# SPDX-License-Identifier: BSD-3-Clause
"""Turns, kicks, interrupts and pauses, with a device that only counts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.device import SimpleDevice
from devices.virtio.features import (
    BASE_FEATURES,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
)
from devices.virtio.queue import chain_loop
from devices.virtio.queue.chain import ChainError, DescriptorChain
from devices.virtio.queue.servers import ChainServer
from devices.virtio.queue.split_queue import QueueError, QueueState
from devices.virtio.queue.worker import LOG_LINES, QueueWorker
from sys_util.errors import GuestError, ProtocolError
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import DATA, NEXT, SIZE, WRITE, Desc, DriverQueue, Used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.virtio.backend import QueueActivation
    from devices.virtio.queue.servers import QueueServer, StartedQueue

VERSION_1 = 1 << VIRTIO_F_VERSION_1
EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX


class Echo(SimpleDevice):
    """Copy what is readable to what is writable."""

    name = "echo"
    device_type = 99
    queue_sizes = (256, 256)
    seccomp_policy = "echo_device"
    in_order = True
    gate = None

    def __init__(self) -> None:
        self.served: list[int] = []
        self.meanwhile: Callable[[], object] = int
        self.error: GuestError | None = None

    def features(self) -> int:
        return 1 << 3

    def config(self) -> bytes:
        return b""

    def write_config(self, offset: int, data: bytes) -> None: ...

    def activate(self, features: int) -> None: ...

    def reset(self) -> None: ...

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return ChainServer(queue, self)

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        self.served.append(queue_index)
        self.meanwhile()
        chain.writer.write(chain.reader.read(min(chain.reader.remaining, chain.writer.remaining)))
        if self.error:
            raise self.error


class Guest:
    """A driver with one queue of the device, and both of its eventfds."""

    def __init__(self, memory: GuestMemory, *, event_idx: bool = False, size: int = SIZE) -> None:
        self.features = VERSION_1 | (EVENT_IDX if event_idx else 0)
        self.queue = DriverQueue(memory, size, event_idx=event_idx)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def activation(self, index: int = 0, *, resume: bool = False) -> QueueActivation:
        return self.queue.activation(index, self.kick_fd, self.call_fd, resume=resume)

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def interrupts(self) -> int:
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)


@pytest.fixture
def guest(memory: GuestMemory) -> Iterator[Guest]:
    guest = Guest(memory)
    yield guest
    guest.close()


@pytest.fixture
def device() -> Echo:
    return Echo()


@pytest.fixture
def worker(device: Echo, memory: GuestMemory, guest: Guest) -> QueueWorker:
    worker = QueueWorker(device, memory)
    worker.start_queue(guest.activation(), guest.features)
    return worker


def test_offered_features_are_the_devices_and_the_base(worker: QueueWorker) -> None:
    assert worker.offered_features == BASE_FEATURES | 1 << VIRTIO_F_IN_ORDER | 1 << 3


def test_kick_serves_every_chain_with_one_interrupt(
    worker: QueueWorker, guest: Guest, device: Echo
) -> None:
    for word in (b"one", b"three", b"four"):
        guest.queue.submit([word], [8])
    guest.kick()
    assert worker.on_kick(0) is False
    assert [(used, data[:used]) for _, used, data in guest.queue.collect()] == [
        (3, b"one"),
        (5, b"three"),
        (4, b"four"),
    ]
    assert guest.interrupts() == 1
    counters = worker.counters
    assert (counters.requests, counters.kicks, counters.interrupts) == (3, 1, 1)
    assert (counters.bytes_from_guest, counters.bytes_to_guest, counters.errors) == (12, 12, 0)
    assert list(counters.cells[:6]) == [3, 12, 12, 0, 1, 1]


def test_kick_without_chains_raises_no_interrupt(worker: QueueWorker, guest: Guest) -> None:
    guest.kick()
    assert worker.on_kick(0) is False
    assert guest.interrupts() == 0


def test_many_kicks_are_one(worker: QueueWorker, guest: Guest) -> None:
    for _ in range(1000):
        guest.kick()
    worker.on_kick(0)
    assert worker.counters.kicks == 1
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        os.eventfd_read(guest.kick_fd)


def test_chain_that_arrives_during_the_last_one_is_served_in_the_same_turn(
    worker: QueueWorker, guest: Guest, device: Echo
) -> None:
    device.meanwhile = lambda: _once(device, lambda: guest.queue.submit([b"b"], [1]))
    guest.queue.submit([b"a"], [1])
    guest.kick()
    assert worker.on_kick(0) is False
    assert [data for *_, data in guest.queue.collect()] == [b"a", b"b"]


def _once(device: Echo, action: Callable[[], object]) -> None:
    device.meanwhile = int
    action()


def test_turn_ends_after_its_chains_and_asks_for_more(
    worker: QueueWorker, guest: Guest, device: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_loop, "MAX_CHAINS_PER_TURN", 3)
    for _ in range(4):
        guest.queue.submit([b"x"], [1])
    guest.kick()
    assert worker.on_kick(0) is True
    assert len(guest.queue.collect()) == 3
    assert guest.interrupts() == 1
    assert worker.on_kick(0) is False
    assert len(guest.queue.collect()) == 1


def test_turn_ends_after_its_bytes(
    worker: QueueWorker, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_loop, "MAX_BYTES_PER_TURN", 100)
    for _ in range(4):
        guest.queue.submit([b"x" * 30], [30])
    assert worker.on_kick(0) is True
    assert len(guest.queue.collect()) == 2


def test_driver_that_never_stops_gets_one_turn_at_a_time(
    worker: QueueWorker, guest: Guest, device: Echo
) -> None:
    def again() -> None:
        guest.queue.offer(0)

    device.meanwhile = again
    guest.queue.offer(0, {0: Desc(DATA, 1, NEXT, 1), 1: Desc(DATA, 1, WRITE)})
    assert worker.on_kick(0) is True
    assert len(device.served) == chain_loop.MAX_CHAINS_PER_TURN


def test_malformed_chains_end_a_turn_too(
    worker: QueueWorker, guest: Guest, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(chain_loop, "MAX_CHAINS_PER_TURN", 3)
    guest.queue.write_descs({0: Desc(1 << 60, 1)})
    for _ in range(5):
        guest.queue.offer(0)
    assert worker.on_kick(0) is True
    assert guest.queue.take_used() == [Used(0, 0)] * 3
    assert worker.counters.errors == 3


def test_error_of_the_device_returns_what_was_written(
    worker: QueueWorker, guest: Guest, device: Echo, lines: list[str]
) -> None:
    device.error = ChainError(0, "no sense")
    guest.queue.submit([b"abc"], [8])
    worker.on_kick(0)
    assert [used for _, used, _ in guest.queue.collect()] == [3]
    assert lines == ["echo queue 0: chain 0: no sense"]


def test_guest_cannot_flood_the_log(worker: QueueWorker, guest: Guest, lines: list[str]) -> None:
    guest.queue.write_descs({0: Desc(1 << 60, 1)})
    for _ in range(100):
        guest.queue.offer(0)
        worker.on_kick(0)
    assert len(lines) == LOG_LINES
    assert worker.counters.errors == 100


def test_unusable_ring_is_reported_once_and_then_left_alone(
    worker: QueueWorker, guest: Guest, lines: list[str]
) -> None:
    guest.queue.submit([b"ok"], [2])
    guest.queue.stage(SIZE)
    guest.queue.publish()
    guest.kick()
    with pytest.raises(QueueError, match="head 8 outside a table of 8"):
        worker.on_kick(0)
    assert [data for *_, data in guest.queue.collect()] == [b"ok"]
    assert worker.states() == {}
    guest.kick()
    assert worker.on_kick(0) is False
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        os.eventfd_read(guest.kick_fd)


def test_unusable_queue_works_again_after_it_was_stopped(
    worker: QueueWorker, guest: Guest, memory: GuestMemory, lines: list[str]
) -> None:
    guest.queue.set_avail_idx(1000)
    with pytest.raises(QueueError, match="ahead of a queue"):
        worker.on_kick(0)
    worker.stop_queue(0)
    fresh = Guest(memory)
    fresh.queue.set_avail_idx(0)
    worker.start_queue(fresh.activation(), fresh.features)
    fresh.queue.submit([b"again"], [5])
    worker.on_kick(0)
    assert [data for *_, data in fresh.queue.collect()] == [b"again"]
    fresh.close()


def test_our_own_bug_is_not_taken_for_the_guests(
    worker: QueueWorker, guest: Guest, device: Echo
) -> None:
    def bug() -> None:
        raise KeyError("bug")

    device.meanwhile = bug
    guest.queue.submit([b"x"], [1])
    with pytest.raises(KeyError, match="bug"):
        worker.on_kick(0)
    assert guest.queue.collect() == []


def test_pause_serves_nothing_and_forgets_nothing(
    worker: QueueWorker, guest: Guest, device: Echo
) -> None:
    guest.queue.submit([b"x"], [1])
    worker.on_kick(0)
    worker.pause()
    guest.queue.submit([b"y"], [1])
    guest.kick()
    assert worker.on_kick(0) is False
    assert worker.states() == {0: QueueState(1, 1)}
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        os.eventfd_read(guest.kick_fd)
    worker.resume()
    worker.on_kick(0)
    assert [data for *_, data in guest.queue.collect()] == [b"x", b"y"]


def test_resumed_queue_interrupts_even_when_nothing_is_left(
    device: Echo, memory: GuestMemory, guest: Guest
) -> None:
    first = QueueWorker(device, memory)
    first.start_queue(guest.activation(), guest.features)
    guest.queue.submit([b"x"], [1])
    first.on_kick(0)
    guest.interrupts()
    second = QueueWorker(device, memory)
    second.start_queue(guest.activation(resume=True), guest.features)
    second.on_kick(0)
    assert guest.interrupts() == 1
    assert second.states() == {0: QueueState(1, 1)}


def test_queue_without_an_interrupt_is_served(
    device: Echo, memory: GuestMemory, guest: Guest
) -> None:
    worker = QueueWorker(device, memory)
    worker.start_queue(guest.activation()._replace(call_fd=-1), guest.features)
    guest.queue.submit([b"x"], [1])
    worker.on_kick(0)
    assert len(guest.queue.collect()) == 1
    assert worker.counters.interrupts == 0


def test_event_idx_driver_that_polls_gets_no_interrupt(device: Echo, memory: GuestMemory) -> None:
    guest = Guest(memory, event_idx=True)
    worker = QueueWorker(device, memory)
    worker.start_queue(guest.activation(), guest.features)
    guest.queue.set_used_event(0xFFFF)
    guest.queue.submit([b"x"], [1])
    worker.on_kick(0)
    assert (len(guest.queue.collect()), guest.interrupts()) == (1, 0)
    assert guest.queue.avail_event == 1
    guest.close()


def test_kick_of_a_queue_that_was_never_started_is_ignored(worker: QueueWorker) -> None:
    assert worker.on_kick(1) is False
    assert worker.on_kick(77) is False


def test_queues_of_one_device_are_served_apart(
    worker: QueueWorker, guest: Guest, device: Echo, memory: GuestMemory
) -> None:
    other = Guest(memory)
    other.queue = DriverQueue(memory, 16, base=0x8000, heap=0x30000)
    worker.start_queue(other.activation(1), other.features)
    guest.queue.submit([b"a"], [1])
    other.queue.submit([b"b"], [1])
    worker.on_kick(1)
    assert device.served == [1]
    worker.on_kick(0)
    assert device.served == [1, 0]
    worker.stop_queue(1)
    other.queue.submit([b"c"], [1])
    assert worker.on_kick(1) is False
    assert device.served == [1, 0]
    other.close()


@pytest.mark.parametrize(
    ("change", "features", "kind", "reason"),
    [
        pytest.param({"index": 2}, VERSION_1, ProtocolError, "queue 2 cannot be", id="index"),
        pytest.param({"index": 0}, VERSION_1, ProtocolError, "queue 0 cannot be", id="twice"),
        pytest.param({}, VERSION_1 | 1 << 4, ProtocolError, "not on offer", id="feature"),
        pytest.param({}, EVENT_IDX, ProtocolError, "not on offer", id="legacy"),
        pytest.param({"size": 512}, VERSION_1, QueueError, "above the limit of 256", id="size"),
        pytest.param({"size": 12}, VERSION_1, QueueError, "not a power of two", id="no-power"),
        pytest.param({"avail_ring": 1 << 40}, VERSION_1, QueueError, "no guest memory", id="ring"),
    ],
)
def test_start_that_makes_no_sense_is_refused(
    worker: QueueWorker,
    guest: Guest,
    change: dict[str, int],
    features: int,
    kind: type[Exception],
    reason: str,
) -> None:
    layout = guest.activation()._asdict() | {"index": 1} | change
    with pytest.raises(kind, match=reason):
        worker.start_queue(type(guest.activation())(**layout), features)
    assert worker.on_kick(1) is False
