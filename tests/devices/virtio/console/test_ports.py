# SPDX-License-Identifier: BSD-3-Clause
"""A console with several ports: control messages, sound or not, and ports that make guests wait."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetWindow
from devices.virtio.console.control import Event
from devices.virtio.console.device import Console, ConsoleSpec, PortSpec
from devices.virtio.console.port import BYTES_PER_TURN
from devices.virtio.queue.worker import QueueWorker
from tests.support.console_driver import DATA_PORT, LONE, PIPE_BYTES, Pipes
from tests.support.device_context import FakeContext
from tests.support.driver_queue import DATA, NEXT, WRITE, Desc

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("lines")

CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
RECEIVE_1, TRANSMIT_1 = 4, 5
BAD_ID = 0xFFFF_FFFF
BUFFERS = 12


class Ports(Pipes):
    """A driver that speaks the control protocol."""

    def say(self, port: int, event: int, value: int = 1) -> None:
        """Send one control message and let the device answer it."""
        self.say_raw(struct.pack("<IHH", port, event, value))

    def say_raw(self, *pieces: bytes) -> None:
        queue = self.driver.queues[CONTROL_TRANSMIT]
        queue.submit(list(pieces))
        self.driver.kick(CONTROL_TRANSMIT)
        assert [used for _, used, _ in queue.collect()] == [0]

    def hear(self) -> list[tuple[int, int, bytes]]:
        """Take every message, and give the device new buffers for the next ones."""
        queue = self.driver.queues[CONTROL_RECEIVE]
        heard = []
        for _, used, data in queue.collect():
            port, event, value = struct.unpack("<IHH", data[:8])
            assert value == 1
            heard.append((port, event, data[8:used]))
        while len(queue.requests) < BUFFERS:
            queue.submit(into=[64])
        self.driver.kick(CONTROL_RECEIVE)
        return heard

    def start(self) -> None:
        self.driver.start()
        self.hear()
        self.say(BAD_ID, Event.DEVICE_READY)
        self.say(0, Event.PORT_READY)
        self.say(1, Event.PORT_READY)
        self.say(0, Event.PORT_OPEN)
        self.say(1, Event.PORT_OPEN)
        self.hear()


@pytest.fixture
def fresh() -> Iterator[Ports]:
    """A hvc console and a data port, whose driver has said nothing yet."""
    ports = Ports(LONE, DATA_PORT)
    ports.driver.start()
    ports.hear()
    yield ports
    ports.close()


@pytest.fixture
def ports() -> Iterator[Ports]:
    """The same, both ports open."""
    ports = Ports(LONE, DATA_PORT)
    ports.start()
    yield ports
    ports.close()


def test_offers_queues_for_control_and_every_port(fresh: Ports) -> None:
    assert fresh.console.queue_sizes == (64, 64, 32, 32, 64, 64)
    assert fresh.console.features() == 0b111
    assert fresh.console.config() == struct.pack("<HHII", 80, 25, 2, 0)


def test_lone_port_with_a_name_has_control_queues_too() -> None:
    ports = Ports(DATA_PORT)
    assert ports.console.queue_sizes == (64, 64, 32, 32)
    assert ports.console.features() == 0b110
    ports.close()


def test_ready_device_is_told_of_its_ports(fresh: Ports) -> None:
    fresh.say(BAD_ID, Event.DEVICE_READY)
    assert fresh.hear() == [(0, Event.PORT_ADD, b""), (1, Event.PORT_ADD, b"")]


def test_device_that_is_ready_again_is_told_of_no_port_twice(fresh: Ports) -> None:
    fresh.say(BAD_ID, Event.DEVICE_READY)
    assert len(fresh.hear()) == 2
    fresh.say(BAD_ID, Event.DEVICE_READY)
    fresh.say(1, Event.PORT_READY)
    fresh.say(BAD_ID, Event.DEVICE_READY)
    assert fresh.hear() == [(1, Event.PORT_NAME, b"org.test.0"), (1, Event.PORT_OPEN, b"")]


def test_device_that_failed_at_first_is_told_of_its_ports_later(fresh: Ports) -> None:
    fresh.say(BAD_ID, Event.DEVICE_READY, 0)
    assert fresh.hear() == []
    fresh.say(BAD_ID, Event.DEVICE_READY)
    assert fresh.hear() == [(0, Event.PORT_ADD, b""), (1, Event.PORT_ADD, b"")]


def test_ports_are_added_again_after_a_reset(ports: Ports) -> None:
    ports.driver.reset()
    ports.driver.start()
    ports.hear()
    ports.say(BAD_ID, Event.DEVICE_READY)
    assert ports.hear() == [(0, Event.PORT_ADD, b""), (1, Event.PORT_ADD, b"")]


def test_ready_console_is_told_its_size(fresh: Ports) -> None:
    fresh.say(0, Event.PORT_READY)
    assert fresh.hear() == [
        (0, Event.CONSOLE_PORT, b""),
        (0, Event.RESIZE, struct.pack("<HH", 80, 25)),
        (0, Event.PORT_OPEN, b""),
    ]


def test_ready_data_port_is_told_its_name(fresh: Ports) -> None:
    fresh.say(1, Event.PORT_READY)
    assert fresh.hear() == [(1, Event.PORT_NAME, b"org.test.0"), (1, Event.PORT_OPEN, b"")]


def test_new_size_is_told_once_however_often_it_changed(ports: Ports) -> None:
    device = ports.console
    queue = ports.driver.queues[CONTROL_RECEIVE]
    for columns in (100, 101):
        device.command(SetWindow(0, columns, 30))
    heard = [data[8:used] for _, used, data in queue.collect()]
    assert heard == [struct.pack("<HH", 100, 30), struct.pack("<HH", 101, 30)]
    while queue.requests:  # no buffers: only the last size is kept
        device.command(SetWindow(0, len(queue.requests), 9))
        queue.collect()
    for columns in range(200, 300):
        device.command(SetWindow(0, columns, 9))
    assert ports.hear() == []
    assert ports.hear() == [(0, Event.RESIZE, struct.pack("<HH", 299, 9))]


def test_size_of_what_is_no_console_is_not_told(ports: Ports) -> None:
    ports.console.command(SetWindow(1, 1, 1))
    assert ports.hear() == []


def test_port_without_the_driver_s_leave_gets_no_input(fresh: Ports) -> None:
    fresh.driver.queues[RECEIVE_1].submit(into=[16])
    fresh.driver.kick(RECEIVE_1)
    os.write(fresh.inputs[1], b"early")
    assert fresh.device_fds[3] not in fresh.driver.context.fds
    fresh.say(1, Event.PORT_OPEN)
    fresh.driver.context.fire(fresh.device_fds[3])
    assert [used for _, used, _ in fresh.driver.queues[RECEIVE_1].collect()] == [5]
    fresh.say(1, Event.PORT_OPEN, 0)
    assert fresh.device_fds[3] not in fresh.driver.context.fds


def test_ports_are_apart(ports: Ports) -> None:
    assert ports.transmit(b"data", queue=TRANSMIT_1) == [0]
    assert ports.transmit(b"console") == [0]
    assert (ports.read(0), ports.read(1)) == (b"console", b"data")


def test_full_pipe_makes_a_data_port_wait_and_loses_nothing(ports: Ports) -> None:
    sent = [bytes([65 + n]) * 3000 for n in range(3)]
    assert ports.transmit(sent[0], queue=TRANSMIT_1) == [0]
    assert ports.transmit(sent[1], queue=TRANSMIT_1) == []
    assert ports.transmit(sent[2], queue=TRANSMIT_1) == []
    received = b""
    while piece := ports.read(1):
        received += piece
        if ports.output_fd(1) in ports.driver.context.fds:
            ports.room(1)
    assert received == b"".join(sent)
    finished = [request.head for request, _, _ in ports.driver.queues[TRANSMIT_1].collect()]
    assert finished == [1, 2]


def test_chain_that_was_written_in_part_means_nothing_to_a_new_queue(ports: Ports) -> None:
    ports.transmit(b"x" * (PIPE_BYTES + 10), queue=TRANSMIT_1)
    ports.driver.worker.stop_queue(TRANSMIT_1)
    ports.driver.start_queue(TRANSMIT_1)
    ports.read(1)
    ports.driver.queues[TRANSMIT_1].submit([b"whole"])
    ports.room(1)
    ports.driver.kick(TRANSMIT_1)
    assert ports.read(1) == b"whole"


def test_chain_that_changes_under_way_is_not_read_beyond_its_end(ports: Ports) -> None:
    queue = ports.driver.queues[TRANSMIT_1]
    ports.transmit(b"x" * (PIPE_BYTES + 10), queue=TRANSMIT_1)
    queue.write_descs({0: Desc(DATA, 1)})
    ports.read(1)
    ports.room(1)
    assert [used.id for used in queue.take_used()] == [0]
    assert ports.read(1) == b""


def test_huge_chain_is_written_turn_by_turn() -> None:
    ports = Ports(LONE, PortSpec("", False, "none", "none"))
    spec = PortSpec("null", False, "stream", "none")
    fds = [os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)]
    ports.console.close()
    ports.take(Console(ConsoleSpec((spec,)), fds))
    ports.driver.start()
    queue = ports.driver.queues[1]
    table = {n: Desc(DATA, BYTES_PER_TURN // 4, NEXT, n + 1) for n in range(15)}
    queue.offer(0, table | {15: Desc(DATA, 16)})
    turns = 0
    while not queue.used_idx:
        turns += 1
        assert ports.driver.worker.on_kick(1) or queue.used_idx
    assert turns == 4
    ports.close()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(b"", "control message of 0 bytes", id="empty"),
        pytest.param(b"\0" * 7, "control message of 7 bytes", id="short"),
        pytest.param(struct.pack("<IHH", 2, 3, 1), "3 for port 2", id="port"),
        pytest.param(struct.pack("<IHH", BAD_ID, 6, 1), f"6 for port {BAD_ID}", id="bad id"),
        pytest.param(struct.pack("<IHH", 0, 99, 1), "message 99", id="event"),
        pytest.param(struct.pack("<IHH", 0, 1, 1), "message 1", id="the device's"),
        pytest.param(struct.pack("<IHH", 0, 3, 0), "could not set port 0 up", id="failed port"),
        pytest.param(struct.pack("<IHH", 0, 0, 0), "could not set the device up", id="failed"),
    ],
)
def test_control_message_that_makes_no_sense_is_ignored(
    ports: Ports, lines: list[str], message: bytes, reason: str
) -> None:
    ports.say_raw(message)
    assert len(lines) == 1
    assert reason in lines[0]
    assert ports.hear() == []


def test_control_message_in_pieces_and_too_long_is_read(fresh: Ports) -> None:
    message = struct.pack("<IHH", 1, Event.PORT_READY, 1) + b"more" * 1000
    fresh.say_raw(message[:3], message[3:7], message[7:])
    assert len(fresh.hear()) == 2


def test_flood_of_control_messages_leaves_one_answer_each(ports: Ports) -> None:
    for _ in range(500):
        ports.say(0, Event.PORT_READY)
        ports.say(BAD_ID, Event.DEVICE_READY)
    heard = ports.hear()
    for _ in range(3):
        heard += ports.hear()
    assert len(heard) <= BUFFERS + 6


@pytest.mark.parametrize(
    "desc",
    [
        pytest.param(Desc(DATA, 7, WRITE), id="short"),
        pytest.param(Desc(DATA, 0, WRITE), id="empty"),
        pytest.param(Desc(DATA, 64), id="readable"),
    ],
)
def test_control_buffer_without_room_comes_back_and_the_message_is_kept(desc: Desc) -> None:
    ports = Ports(LONE, DATA_PORT)
    ports.driver.start()
    ports.driver.queues[CONTROL_RECEIVE].offer(15, {15: desc})
    ports.say(1, Event.PORT_READY)
    assert ports.driver.queues[CONTROL_RECEIVE].take_used() == [(15, 0)]
    ports.hear()
    assert [event for _, event, _ in ports.hear()] == [Event.PORT_NAME, Event.PORT_OPEN]
    ports.close()


def test_driver_without_multiport_has_the_first_port_only(lines: list[str]) -> None:
    ports = Ports(LONE, DATA_PORT)
    ports.driver.features &= ~0b10
    ports.driver.start()
    assert ports.transmit(b"one") == [0]
    assert ports.transmit(b"two", queue=TRANSMIT_1) == []
    ports.driver.queues[CONTROL_TRANSMIT].submit([bytes(8)])
    ports.driver.kick(CONTROL_TRANSMIT)
    assert ports.driver.queues[CONTROL_TRANSMIT].collect() == []
    ports.driver.queues[0].submit(into=[16])
    ports.driver.kick(0)
    os.write(ports.inputs[0], b"in")
    ports.driver.context.fire(ports.device_fds[1])
    assert [used for _, used, _ in ports.driver.queues[0].collect()] == [2]
    ports.close()


def test_reset_forgets_what_was_still_to_be_said(fresh: Ports) -> None:
    fresh.say(BAD_ID, Event.DEVICE_READY)
    fresh.driver.reset()
    fresh.driver.start()
    assert fresh.hear() == []
    assert fresh.hear() == []


def test_input_floods_while_the_driver_gives_no_buffers(ports: Ports) -> None:
    os.write(ports.inputs[1], b"f" * PIPE_BYTES)
    ports.driver.context.fire(ports.device_fds[3])
    assert ports.device_fds[3] not in ports.driver.context.fds
    with pytest.raises(BlockingIOError):
        os.write(ports.inputs[1], b"f")


def test_next_process_goes_on_with_the_ports_that_were_open(ports: Ports) -> None:
    ports.transmit(b"before", queue=TRANSMIT_1)
    queues = ports.driver.queues
    console = Console(ConsoleSpec((LONE, DATA_PORT)), ports.device_fds)
    ports.driver.worker = QueueWorker(console, ports.memory)
    ports.driver.context = FakeContext(ports.memory, ports.driver.worker)
    console.attach(ports.driver.context)
    console.activate(ports.driver.features)
    for index in queues:
        ports.driver.start_queue(index, resume=True)
    assert ports.hear() == []
    queues[RECEIVE_1].submit(into=[16])
    os.write(ports.inputs[1], b"input")
    ports.driver.kick(RECEIVE_1)
    ports.driver.context.fire(ports.device_fds[3])
    assert [used for _, used, _ in queues[RECEIVE_1].collect()] == [5]
    assert ports.transmit(b" after", queue=TRANSMIT_1) == [1]
    assert ports.read(1) == b"before after"
    console.command(SetWindow(0, 90, 20))
    assert ports.hear() == [(0, Event.RESIZE, struct.pack("<HH", 90, 20))]
