# SPDX-License-Identifier: BSD-3-Clause
"""A vsock device whose process ends: old connections are reset, new ones are never."""

from __future__ import annotations

import os
import socket
from itertools import count
from typing import TYPE_CHECKING

import pytest

from devices.virtio.vsock import ports as vsock_ports
from devices.virtio.vsock.common import PATIENCE_SECONDS
from devices.virtio.vsock.ports import FIRST_LOCAL_PORT, LOCAL_PORTS, PORT_BLOCK
from tests.support.device_context import DriverSide
from tests.support.killed import each_kill, shared_state
from tests.support.vsock_rig import (
    CREDIT_REQUEST,
    EVENT,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    RX,
    TX,
    Packet,
    VsockRig,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EVENT_BYTES = 4


class Rig(VsockRig):
    """Processes that come and go over the same listening sockets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.driver.close()
        self.driver = DriverSide(self.device, self.memory, saved=shared_state())
        fds = [sock.fileno() for sock, _ in self.device._muxer._entrance._listeners]
        self.kept = [os.dup(fd) for fd in fds]

    def start(self, buffers: int = 32) -> None:
        super().start(buffers)
        self.give_events(8)

    def take_over(self) -> None:
        """Let a new process take the place of this one, whose sockets are closed with it."""
        self.device._muxer.close()
        self.broker.channel.close()
        self.device = self.new_device([os.dup(fd) for fd in self.kept])
        self.driver.replace(self.device)
        self.settle()

    def answer_echo(self) -> None:
        """Do what a driver does with a packet for a socket that it has not."""
        for packet in self.packets():  # one of each process that lived long enough
            assert (packet.op, packet.dst_port) == (CREDIT_REQUEST, 0xFFFF_FFFF)
            self.send(RST, src_port=packet.dst_port, dst_port=packet.src_port)

    def take_over_and_echo(self) -> None:
        self.take_over()
        self.answer_echo()

    def give_events(self, count: int = 1, length: int = EVENT_BYTES) -> None:
        for _ in range(count):
            self.driver.queues[EVENT].submit(into=[length])
        self.driver.kick(EVENT)
        self.settle()

    def events(self) -> list[bytes]:
        """Return the events that came, with what was not written cut off."""
        return [data[:used] for _, used, data in self.driver.queues[EVENT].collect()]

    def seen(self) -> object:
        return self.driver.seen()

    def close(self) -> None:
        super().close()
        for fd in self.kept:
            os.close(fd)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.start()
    yield rig
    rig.close()


def test_old_connections_end_on_both_sides_and_new_ones_work(rig: Rig) -> None:
    from_guest = rig.open_from_guest()
    from_host, _ = rig.open_from_host()
    rig.take_over_and_echo()
    assert (from_guest.recv(1), from_host.recv(1)) == (b"", b"")
    assert rig.events() == [bytes(EVENT_BYTES)]
    assert rig.driver.interrupted(EVENT)
    rig.give_events()
    state = rig.driver.worker.states()[EVENT]
    assert state.next_avail == state.next_used  # no buffer is held any more
    rig.send(RW, b"late")
    assert rig.ops() == [RST]
    host = rig.open_from_guest(src_port=1001)
    host.send(b"both")
    assert [packet.data for packet in rig.packets()] == [b"both"]
    rig.send(RW, b"ways", src_port=1001)
    assert host.recv(10) == b"ways"
    rig.open_from_host()


def test_driver_hears_of_no_connection_after_it_has_closed_all(rig: Rig) -> None:
    rig.listen(52)
    rig.send(REQUEST)  # whose answer is not looked at before the process ends
    rig.take_over()
    rig.give_events()
    assert rig.events() == []
    response, echo = rig.packets()
    assert (response.op, echo.op) == (RESPONSE, CREDIT_REQUEST)
    rig.send(RST, src_port=echo.dst_port, dst_port=echo.src_port)
    assert rig.events() == [bytes(EVENT_BYTES)]


def test_nothing_is_told_before_the_driver_has_closed_its_connections(rig: Rig) -> None:
    rig.take_over_and_echo()
    waiting = rig.connect(b"CONNECT 80\n")
    rig.listen(52)
    rig.send(REQUEST, src_port=7)
    for _ in range(300):
        rig.send(RW, b"of an old connection")
    assert rig.packets() == []
    rig.give_events()
    told = {packet.op: packet for packet in rig.packets()}
    assert told.keys() == {REQUEST, RESPONSE}
    rig.send(RESPONSE, src_port=80, dst_port=told[REQUEST].src_port)
    assert waiting.recv(100).startswith(b"OK ")


def test_driver_that_answers_nothing_is_not_waited_for_long(rig: Rig) -> None:
    rig.take_over()
    assert rig.ops() == [CREDIT_REQUEST]
    rig.pass_time(PATIENCE_SECONDS / 2)
    assert rig.events() == []
    rig.pass_time(PATIENCE_SECONDS / 2)
    assert rig.events() == [bytes(EVENT_BYTES)]
    rig.pass_time(PATIENCE_SECONDS / 2)
    rig.send(RW, b"late")
    assert rig.packets() == []
    rig.pass_time(PATIENCE_SECONDS / 2)
    rig.send(RW, b"later")
    assert rig.ops() == [RST]
    rig.give_events(3)
    assert rig.events() == []


@pytest.mark.parametrize("lengths", [[4], [8], [3, 4], [3, 0, 3, 64]])
def test_event_waits_for_a_buffer(tmp_path: Path, lengths: list[int]) -> None:
    rig = Rig(tmp_path)
    VsockRig.start(rig)
    rig.take_over_and_echo()
    rig.pass_time(2 * PATIENCE_SECONDS)
    for length in lengths:
        rig.give_events(length=length)
    assert rig.events() == [b""] * (len(lengths) - 1) + [bytes(EVENT_BYTES)]
    rig.give_events(3)
    assert rig.events() == []
    rig.close()


@pytest.mark.parametrize("lengths", [[44], [0, 100], [43, 44]])
def test_question_for_an_echo_waits_for_a_buffer(tmp_path: Path, lengths: list[int]) -> None:
    rig = Rig(tmp_path)
    rig.driver.start(RX, TX)
    rig.driver.start_queue(EVENT)
    rig.take_over()
    for length in lengths:
        rig.offer(1, length)
    finished = rig.driver.queues[RX].collect()
    assert [used for _, used, _ in finished] == [0] * (len(lengths) - 1) + [44]
    assert finished[-1][2][30:32] == CREDIT_REQUEST.to_bytes(2, "little")
    rig.offer(1)
    assert rig.driver.queues[RX].collect() == []
    rig.close()


def test_fresh_device_sends_no_event(rig: Rig) -> None:
    rig.pass_time(2 * PATIENCE_SECONDS)
    assert (rig.events(), rig.packets()) == ([], [])
    rig.driver.reset()
    rig.start()
    assert (rig.events(), rig.packets()) == ([], [])


@pytest.mark.parametrize("queue", [EVENT, RX])
def test_queues_may_be_reset_meanwhile(rig: Rig, queue: int) -> None:
    rig.take_over_and_echo()
    rig.driver.worker.stop_queue(queue)
    rig.driver.start_queue(queue)
    rig.offer(8)
    rig.give_events(3)
    rig.pass_time(2 * PATIENCE_SECONDS)
    rig.open_from_guest(src_port=1001)


def test_driver_reset_meanwhile_leaves_nothing_to_wait_for(rig: Rig) -> None:
    rig.take_over()
    rig.driver.reset()
    rig.start()
    rig.open_from_guest()
    assert rig.events() == []


def rigs(tmp_path: Path) -> Callable[[], Rig]:
    """Return what makes rigs with a folder each."""
    numbers = count()

    def make() -> Rig:
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        rig = Rig(folder)
        rig.start()
        return rig

    return make


def test_event_is_told_wherever_the_process_ends_that_asks(tmp_path: Path) -> None:
    for rig in each_kill(rigs(tmp_path), Rig.take_over):
        rig.take_over_and_echo()
        assert rig.events() == [bytes(EVENT_BYTES)]
        rig.give_events()
        rig.open_from_guest(src_port=1001)


def test_event_is_told_wherever_the_process_ends_that_tells_it(tmp_path: Path) -> None:
    new_rig = rigs(tmp_path)

    def make() -> Rig:
        rig = new_rig()
        rig.take_over()
        (echo,) = rig.packets()
        answer = Packet(src_port=echo.dst_port, dst_port=echo.src_port, op=RST)
        rig.driver.queues[TX].submit([answer.header()])
        return rig

    def serve(rig: Rig) -> None:
        rig.driver.kick(TX)
        rig.settle()

    for rig in each_kill(make, serve):
        earlier = rig.events()
        assert earlier in ([], [bytes(EVENT_BYTES)])
        rig.take_over_and_echo()
        assert rig.events() == [bytes(EVENT_BYTES)]
        rig.give_events()
        rig.open_from_guest(src_port=1001)


def test_port_of_the_host_is_not_used_again(tmp_path: Path) -> None:
    new_rig = rigs(tmp_path)

    def make() -> Rig:
        rig = new_rig()
        _, port = rig.open_from_host()
        assert port == FIRST_LOCAL_PORT
        return rig

    for rig in each_kill(make, Rig.take_over):
        rig.take_over_and_echo()
        rig.give_events()
        _, port = rig.open_from_host()
        assert port >= FIRST_LOCAL_PORT + PORT_BLOCK
        assert not port % PORT_BLOCK


def test_block_of_ports_is_followed_by_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock_ports, "PORT_BLOCK", 2)
    rig.take_over_and_echo()
    rig.give_events()
    ports = [rig.open_from_host()[1] for _ in range(5)]
    assert ports == list(range(ports[0], ports[0] + 5))
    rig.take_over_and_echo()
    rig.give_events()
    assert rig.open_from_host()[1] == ports[0] + 6


@pytest.mark.parametrize("port", [None, -PORT_BLOCK, 1, LOCAL_PORTS, "0", True, 1.0])
def test_nonsense_of_the_last_process_is_one_line_and_no_more(
    rig: Rig, port: object, lines: list[str]
) -> None:
    rig.driver.context.saved.store({"next_port": port})
    rig.take_over_and_echo()
    assert len(lines) == 1
    assert "saved state is not used" in lines[0]
    rig.give_events()
    assert rig.open_from_host()[1] == FIRST_LOCAL_PORT


def test_host_process_that_had_not_said_where_to_gets_its_end(rig: Rig) -> None:
    silent = rig.connect()
    rig.take_over()
    assert silent.recv(1) == b""
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(f"{rig.path}")
