# SPDX-License-Identifier: BSD-3-Clause
"""A queue in the hands of its device: taking, giving back, waiting, pausing, ending."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetLink
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.queue import port as port_module
from devices.virtio.queue.servers import ChainServer, PortServer
from devices.virtio.queue.split_queue import QueueError, QueueState
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide
from tests.support.driver_queue import SIZE, WRITE, Desc, Used

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.queue.servers import QueueServer, StartedQueue


class Parking(SimpleDevice):
    """Serve queue 0 itself; queue 1 is served by the common loop."""

    name = "parking"
    device_type = 99
    queue_sizes = (64, 64)
    seccomp_policy = "parking_device"
    in_order = False
    gate = None

    def __init__(self) -> None:
        self.kicks: list[int] = []
        self.paused: list[bool] = []

    def features(self) -> int:
        return 0

    def config(self) -> bytes:
        return b""

    def write_config(self, offset: int, data: bytes) -> None: ...

    def activate(self, features: int) -> None: ...

    def reset(self) -> None: ...

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return PortServer(queue, self.on_kick) if queue.number == 0 else ChainServer(queue, self)

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        chain.writer.write(b"?")

    def on_kick(self, index: int) -> bool:
        self.kicks.append(index)
        return False

    def pause(self) -> None:
        self.paused.append(True)

    def resume(self) -> None:
        self.paused.append(False)


@pytest.fixture
def device() -> Parking:
    return Parking()


@pytest.fixture
def side(device: Parking, lines: list[str]) -> Iterator[DriverSide]:
    memory = GuestMemory.create([(0, 4 << 20)])
    side = DriverSide(device, memory)
    side.start(size=SIZE)
    yield side
    side.close()
    memory.close()


@pytest.fixture
def port(side: DriverSide) -> QueuePort:
    port = side.context.port(0)
    assert port is not None
    return port


def take(port: QueuePort) -> DescriptorChain:
    chain = port.take()
    assert chain is not None
    return chain


def test_start_calls_the_device_once_for_what_may_be_there(
    side: DriverSide, device: Parking
) -> None:
    assert device.kicks == [0]


def test_kick_of_an_own_queue_goes_to_the_device(side: DriverSide, device: Parking) -> None:
    side.kick(0)
    assert device.kicks == [0, 0]
    assert side.worker.counters.kicks == 1


def test_other_queues_are_served_by_the_common_loop(side: DriverSide, device: Parking) -> None:
    side.queues[1].submit([], [1])
    side.kick(1)
    assert [data for *_, data in side.queues[1].collect()] == [b"?"]
    assert device.kicks == [0]
    assert side.context.port(1) is None


def test_chain_that_was_given_back_is_seen_after_flush(side: DriverSide, port: QueuePort) -> None:
    side.queues[0].submit([b"abc"], [4])
    chain = take(port)
    chain.writer.write(b"de")
    port.give_back(chain)
    assert side.queues[0].take_used() == []
    port.flush()
    assert [(used, data[:used]) for _, used, data in side.queues[0].collect()] == [(2, b"de")]
    assert side.interrupted(0)
    counters = side.worker.counters
    assert (counters.requests, counters.bytes_from_guest, counters.bytes_to_guest) == (1, 3, 2)
    assert list(counters.cells[:6]) == [1, 3, 2, 0, 0, 1]


def test_batch_costs_one_interrupt(side: DriverSide, port: QueuePort) -> None:
    for _ in range(3):
        side.queues[0].submit([], [1])
    while chain := port.take():
        port.give_back(chain)
    port.flush()
    port.flush()
    assert side.worker.counters.interrupts == 1


def test_chains_given_back_in_any_order_are_used_in_the_order_taken(
    side: DriverSide, port: QueuePort
) -> None:
    requests = [side.queues[0].submit([], [1]) for _ in range(3)]
    chains = [take(port) for _ in requests]
    for at in (2, 1):
        port.give_back(chains[at])
        port.flush()
        assert side.queues[0].take_used() == []
    port.give_back(chains[0])
    port.flush()
    assert [used.id for used in side.queues[0].take_used()] == [r.head for r in requests]


def test_malformed_chain_waits_for_the_one_held_before_it(
    side: DriverSide, port: QueuePort
) -> None:
    side.queues[0].submit([], [1])
    side.queues[0].offer(7, {7: Desc(1 << 50, 1, WRITE)})
    chain = take(port)
    assert port.take() is None
    port.flush()
    assert side.queues[0].take_used() == []
    port.give_back(chain)
    port.flush()
    assert [used.id for used in side.queues[0].take_used()] == [chain.head, 7]


def test_put_back_takes_those_behind_along(side: DriverSide, port: QueuePort) -> None:
    first = side.queues[0].submit([b"abc"], [1])
    side.queues[0].offer(6, {6: Desc(1 << 50, 1, WRITE)})
    third = side.queues[0].submit([b"de"], [1])
    held = take(port)
    port.give_back(take(port))
    port.put_back(held)
    assert (side.worker.counters.bytes_from_guest, side.worker.counters.requests) == (0, 0)
    for _ in range(2):
        port.give_back(take(port))
    port.flush()
    assert [used.id for used in side.queues[0].take_used()] == [first.head, 6, third.head]


def test_take_of_an_empty_queue_is_none(port: QueuePort) -> None:
    assert port.take() is None


def test_malformed_chains_go_back_by_themselves(side: DriverSide, port: QueuePort) -> None:
    side.queues[0].offer(0, {0: Desc(1 << 60, 1, WRITE)})
    side.queues[0].offer(5, {5: Desc(0x100000, 1, WRITE)})
    assert take(port).head == 5
    assert port.wait() is False
    assert side.queues[0].take_used() == [Used(0, 0)]
    assert side.worker.counters.errors == 1


def test_endless_malformed_chains_end_the_turn(
    side: DriverSide, port: QueuePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "MAX_MALFORMED", 3)
    side.queues[0].write_descs({0: Desc(1 << 60, 1)})
    for _ in range(5):
        side.queues[0].offer(0)
    assert port.take() is None
    assert port.wait() is True
    assert side.queues[0].take_used() == [Used(0, 0)] * 3


def test_chain_that_was_put_back_comes_again(side: DriverSide, port: QueuePort) -> None:
    side.queues[0].submit([b"abc"])
    side.queues[0].submit([b"d"])
    chain = take(port)
    port.put_back(chain)
    assert side.worker.counters.bytes_from_guest == 0
    assert side.worker.states()[0] == QueueState(0, 0)
    assert take(port).reader.read(3) == b"abc"
    assert take(port).reader.read(1) == b"d"
    assert port.take() is None


def test_wait_asks_for_a_kick(side: DriverSide, port: QueuePort) -> None:
    side.queues[0].submit([], [1])
    port.take()
    assert port.wait() is False
    assert side.queues[0].needs_kick(side.queues[0].avail_idx)


def test_wait_finds_what_slipped_in(side: DriverSide, port: QueuePort) -> None:
    assert port.wait() is False
    side.queues[0].submit([], [1])
    assert port.wait() is True


def test_take_after_wait_wants_no_more_kicks(side: DriverSide, port: QueuePort) -> None:
    assert port.wait() is False
    side.queues[0].submit([], [1])
    port.take()
    assert not side.queues[0].needs_kick(side.queues[0].avail_idx)


def test_unusable_ring_leaves_the_port(side: DriverSide, port: QueuePort) -> None:
    side.queues[0].set_avail_idx(1000)
    with pytest.raises(QueueError, match="ahead of a queue"):
        port.take()
    with pytest.raises(QueueError, match="ahead of a queue"):
        port.wait()
    assert side.worker.abandon_own_queues() == [0]
    assert port.take() is None
    assert side.context.port(0) is None


def test_pause_empties_the_port_and_still_takes_back(
    side: DriverSide, port: QueuePort, device: Parking
) -> None:
    side.queues[0].submit([], [1])
    side.queues[0].submit([], [1])
    chain = take(port)
    side.worker.pause()
    assert device.paused == [True]
    assert port.take() is None
    assert port.wait() is False
    port.give_back(chain)
    port.flush()
    assert len(side.queues[0].take_used()) == 1
    side.worker.resume()
    assert device.paused == [True, False]
    assert port.take() is not None


def test_pause_shows_the_driver_what_the_device_finished_for_it(
    side: DriverSide, port: QueuePort
) -> None:
    side.queues[0].submit([], [1])
    port.give_back(take(port))
    side.worker.pause()
    assert len(side.queues[0].take_used()) == 1


def test_queue_that_starts_while_paused_is_paused(side: DriverSide) -> None:
    side.worker.pause()
    side.worker.stop_queue(0)
    side.start_queue(0)
    side.queues[0].submit([], [1])
    port = side.context.port(0)
    assert port is not None
    assert port.take() is None


def test_stopped_queue_touches_no_memory(side: DriverSide, port: QueuePort) -> None:
    side.queues[0].submit([], [1])
    side.queues[0].submit([], [1])
    chain = take(port)
    side.worker.stop_queue(0)
    port.give_back(chain)
    port.flush()
    port.put_back(chain)
    assert port.take() is None
    assert port.wait() is False
    assert side.queues[0].take_used() == []
    assert side.context.port(0) is None


def test_resumed_queue_goes_on_behind_what_was_used(side: DriverSide, port: QueuePort) -> None:
    for word in (b"a", b"b", b"c"):
        side.queues[0].submit([word])
    port.give_back(take(port))
    port.flush()
    port.take()
    side.worker.stop_queue(0)
    side.start_queue(0, size=SIZE, resume=True)
    port_again = side.context.port(0)
    assert port_again is not None
    assert take(port_again).reader.read(1) == b"b"


def test_simple_devices_know_no_command(device: Parking) -> None:
    with pytest.raises(CommandError, match="parking devices know no link"):
        device.command(SetLink(up=True))


def test_place_of_a_chain_is_the_same_in_the_next_process(
    side: DriverSide, port: QueuePort
) -> None:
    for _ in range(2):
        side.queues[0].submit(into=[8])
    first = port.take()
    assert first is not None
    assert port.last_taken == 0
    port.give_back(first)
    port.publish()
    assert side.queues[0].used_idx == 1
    assert not side.interrupted(0)
    assert port.take() is not None
    assert port.last_taken == 1
    side.worker.stop_queue(0)
    side.start_queue(0, size=SIZE, resume=True)
    successor = side.worker.port(0)
    assert successor is not None
    assert successor.take() is not None
    assert successor.last_taken == 1
