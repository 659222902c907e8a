# SPDX-License-Identifier: BSD-3-Clause
"""A console with one port: bytes both ways, its size, and readers that stop."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import Command, Drain, Obeyed, SetLink, SetWindow, Waiting
from devices.virtio.console import backlog as console_backlog
from devices.virtio.console.device import Console, ConsoleSpec, PortSpec
from devices.virtio.counters import named
from devices.virtio.device import CommandError
from tests.support.console_driver import LONE, PIPE_BYTES, RECEIVE, TRANSMIT, Pipes
from tests.support.driver_queue import DATA, INDIRECT, NEXT, WRITE, Desc
from tests.support.sockets import arrived

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.usefixtures("lines")


@pytest.fixture
def console() -> Iterator[Pipes]:
    console = Pipes(LONE)
    console.driver.start()
    yield console
    console.close()


def test_lone_port_needs_no_control_queues() -> None:
    device = Console(ConsoleSpec((LONE,)), [])
    assert device.queue_sizes == (64, 64)
    assert device.features() == 0b101


def test_output_goes_to_the_host_and_the_chain_comes_back(console: Pipes) -> None:
    assert console.transmit(b"good ", b"day\n") == [0]
    assert console.read() == b"good day\n"


def test_zero_length_chain_comes_back(console: Pipes) -> None:
    console.driver.queues[TRANSMIT].offer(0, {0: Desc(0, 0)})
    console.driver.kick(TRANSMIT)
    assert [used.id for used in console.driver.queues[TRANSMIT].take_used()] == [0]
    assert console.read() == b""


def test_input_fills_a_buffer(console: Pipes) -> None:
    queue = console.driver.queues[RECEIVE]
    queue.submit(into=[3, 64])
    console.driver.kick(RECEIVE)
    os.write(console.inputs[0], b"typed")
    console.driver.context.fire(console.device_fds[1])
    ((_, used, data),) = queue.collect()
    assert (used, data[:5]) == (5, b"typed")
    assert console.driver.interrupted(RECEIVE)


def test_input_without_buffers_stays_with_its_writer(console: Pipes) -> None:
    os.write(console.inputs[0], b"x" * PIPE_BYTES)
    console.driver.context.fire(console.device_fds[1])
    assert console.device_fds[1] not in console.driver.context.fds
    with pytest.raises(BlockingIOError):
        os.write(console.inputs[0], b"y")
    console.driver.queues[RECEIVE].submit(into=[16])
    console.driver.kick(RECEIVE)
    console.driver.context.fire(console.device_fds[1])
    assert [used for _, used, _ in console.driver.queues[RECEIVE].collect()] == [16]


def test_end_of_input_is_no_event_any_more(console: Pipes) -> None:
    console.driver.queues[RECEIVE].submit(into=[16])
    console.fds.remove(console.inputs[0])
    os.close(console.inputs[0])
    console.driver.context.fire(console.device_fds[1])
    assert console.device_fds[1] not in console.driver.context.fds
    assert console.driver.queues[RECEIVE].take_used() == []
    console.driver.kick(RECEIVE)
    assert console.device_fds[1] not in console.driver.context.fds


def test_input_from_a_file_needs_no_event() -> None:
    console = Pipes(LONE._replace(input="regular"))
    os.write(console.inputs[0], b"abcd")
    console.driver.start()
    console.driver.queues[RECEIVE].submit(into=[3])
    console.driver.queues[RECEIVE].submit(into=[3])
    console.driver.kick(RECEIVE)
    data = [data[:used] for _, used, data in console.driver.queues[RECEIVE].collect()]
    assert data == [b"abc", b"d"]
    console.close()


@pytest.mark.parametrize(
    "table",
    [
        pytest.param({0: Desc(DATA, 0, WRITE)}, id="empty"),
        pytest.param({0: Desc(DATA, 8)}, id="readable"),
        pytest.param({0: Desc(DATA, 8, NEXT, 1), 1: Desc(DATA, 8, WRITE)}, id="both"),
        pytest.param({0: Desc(1 << 60, 8, WRITE)}, id="nowhere"),
    ],
)
def test_bad_buffer_for_input_comes_back_and_the_next_is_used(
    console: Pipes, table: dict[int, Desc]
) -> None:
    queue = console.driver.queues[RECEIVE]
    queue.offer(0, table)
    queue.offer(5, {5: Desc(DATA + 64, 16, WRITE)})
    os.write(console.inputs[0], b"in")
    console.driver.context.fire(console.device_fds[1])
    assert [(used.id, used.len) for used in queue.take_used()] == [(0, 0), (5, 2)]


def test_more_bad_buffers_than_a_turn_takes_do_not_end_the_input() -> None:
    console = Pipes(LONE)
    console.driver.start(size=64)
    queue = console.driver.queues[RECEIVE]
    queue.write_descs({0: Desc(DATA, 0, WRITE), 1: Desc(DATA, 16, WRITE)})
    os.write(console.inputs[0], b"in")
    for _ in range(64):
        queue.stage(0)
    queue.publish()
    console.driver.context.fire(console.device_fds[1])
    assert len(queue.take_used()) == 64
    queue.offer(1)
    console.driver.context.fire(console.device_fds[1])
    assert queue.take_used() == [(1, 2)]
    console.close()


@pytest.mark.parametrize("gone", [False, True], ids=["stopped", "gone"])
def test_gigabytes_for_a_reader_who_does_not_read_take_one_turn(*, gone: bool) -> None:
    console = Pipes(LONE)
    console.driver.start(size=64)
    if gone:
        os.close(console.outputs[0])
        console.fds.remove(console.outputs[0])
    console.transmit(b"a" * PIPE_BYTES)
    queue = console.driver.queues[TRANSMIT]
    table = queue.write_table([Desc(0, 16 << 20)] * 255)
    for head in range(3):
        queue.offer(head, {head: Desc(table, 255 * 16, INDIRECT)})
    turns = 1
    while console.driver.worker.on_kick(TRANSMIT):
        turns += 1
    assert [used.id for used in queue.take_used()] == [0, 1, 2]
    assert turns <= 3
    console.close()


def test_stopped_reader_of_a_console_costs_output_but_no_time_and_no_memory(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(console_backlog, "BACKLOG_BYTES", 100)
    console = Pipes(LONE)
    console.driver.start()
    assert console.transmit(b"a" * PIPE_BYTES) == [0]
    assert len(console.transmit(b"b" * 80)) == 1
    assert len(console.transmit(b"c" * 80)) == 1
    assert console.read() == b"a" * PIPE_BYTES
    console.room()
    assert console.read() == b"b" * 80 + b"c" * 20
    assert lines == ["port 0: 60 bytes dropped: the reader is too slow"]
    assert named(console.driver.context.counters.cells, ["dropped_bytes"])["dropped_bytes"] == 60
    console.transmit(b"d")
    assert console.read() == b"d"
    console.close()


def test_huge_chain_costs_a_console_no_more_than_its_backlog(console: Pipes) -> None:
    table = {n: Desc(DATA, 0x40000, NEXT, n + 1) for n in range(15)}
    console.driver.queues[TRANSMIT].offer(0, table | {15: Desc(DATA, 0x40000)})
    console.driver.kick(TRANSMIT)
    assert [used.id for used in console.driver.queues[TRANSMIT].take_used()] == [0]
    output = console.console._ports[0].output
    assert output is not None
    assert len(output.backlog) == console_backlog.BACKLOG_BYTES


def test_reader_who_went_away_is_told_once(console: Pipes, lines: list[str]) -> None:
    os.close(console.outputs[0])
    console.fds.remove(console.outputs[0])
    assert console.transmit(b"x") == [0]
    assert console.transmit(b"y") == [1]
    assert lines == ["port 0: Broken pipe; output goes nowhere from here on"]


@pytest.mark.parametrize(("offset", "written"), [(8, b"!"), (0, b""), (4, b""), (9, b"")])
def test_emergency_write_needs_no_queue(offset: int, written: bytes) -> None:
    console = Pipes(LONE)
    console.driver.device.write_config(offset, b"!\0\0\0")
    assert console.read() == written
    console.close()


def test_size_is_in_the_configuration_and_follows(console: Pipes) -> None:
    device = console.driver.device
    assert console.driver.context.config_changes == 1  # Linux looks at the first size, too
    assert device.config() == struct.pack("<HHII", 80, 25, 1, 0)
    assert device.command(SetWindow(0, 132, 50)) == Obeyed()
    assert device.config() == struct.pack("<HHII", 132, 50, 1, 0)
    assert console.driver.context.config_changes == 2
    device.command(SetWindow(0, 132, 50))
    assert console.driver.context.config_changes == 2


def test_drain_says_what_waits_for_its_reader(console: Pipes) -> None:
    console.driver.queues[TRANSMIT].submit([b"a" * (PIPE_BYTES + 7)])
    assert console.console.command(Drain()) == Waiting(7)
    console.read()
    console.room()
    assert console.console.command(Drain()) == Waiting(0)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (SetLink(up=True), "console devices know no link"),
        (SetWindow(1, 1, 1), "port 1: there are 1"),
    ],
)
def test_command_that_makes_no_sense_is_refused(
    console: Pipes, command: Command, reason: str
) -> None:
    with pytest.raises(CommandError, match=reason):
        console.driver.device.command(command)


def test_reset_stops_input_until_the_next_driver(console: Pipes) -> None:
    console.driver.queues[RECEIVE].submit(into=[16])
    console.driver.kick(RECEIVE)
    console.driver.reset()
    assert console.driver.context.fds == {}
    console.driver.start()
    console.driver.queues[RECEIVE].submit(into=[16])
    console.driver.kick(RECEIVE)
    os.write(console.inputs[0], b"again")
    console.driver.context.fire(console.device_fds[1])
    assert [used for _, used, _ in console.driver.queues[RECEIVE].collect()] == [5]


def test_pause_holds_output_and_resume_writes_it(console: Pipes) -> None:
    console.driver.worker.pause()
    assert console.transmit(b"later") == []
    console.driver.worker.resume()
    console.driver.kick(TRANSMIT)
    assert console.read() == b"later"


def lines_console(prefix: bytes) -> tuple[Pipes, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    pipes = Pipes(PortSpec("", True, "none", "none"))
    spec = PortSpec("", True, "lines", "none", prefix=prefix)
    pipes.take(Console(ConsoleSpec((spec,)), [theirs.detach()]))
    pipes.driver.start()
    return pipes, ours


def test_lines_go_out_one_by_one_behind_their_prefix() -> None:
    pipes, ours = lines_console(b"<14>")
    pipes.transmit(b"one\r\n\r\ntw", b"o\nthr")
    assert arrived(ours) == [b"<14>one", b"<14>two"]
    pipes.transmit(b"ee" + b"e" * 2000 + b"\n")
    assert [len(line) for line in arrived(ours)] == [1028, 985]
    pipes.close()
    ours.close()


def test_log_daemon_that_stops_costs_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_backlog, "BACKLOG_BYTES", mmap.PAGESIZE)
    pipes, ours = lines_console(b"")
    for _ in range(300):
        assert pipes.transmit(b"x" * 1000 + b"\n")
    first = arrived(ours)
    pipes.room()
    assert set(first + arrived(ours)) == {b"x" * 1000}
    pipes.close()
    ours.close()


def test_log_daemon_that_went_away_is_told_once(lines: list[str]) -> None:
    pipes, ours = lines_console(b"")
    ours.close()
    for _ in range(3):
        assert pipes.transmit(b"line\n")
    assert lines == ["port 0: Connection refused; output goes nowhere from here on"]
    pipes.close()


def test_socket_of_others_is_never_made_non_blocking() -> None:
    ours, theirs = socket.socketpair()
    pipes = Pipes(PortSpec("", True, "none", "none"))
    spec = PortSpec("data", False, "socket", "none")
    pipes.take(Console(ConsoleSpec((spec,)), [os.dup(theirs.fileno())]))
    pipes.driver.start()
    for _ in range(5):
        pipes.driver.queues[TRANSMIT].submit([b"z" * 100_000])
    pipes.driver.kick(TRANSMIT)
    assert len(pipes.driver.queues[TRANSMIT].collect()) < 5
    assert os.get_blocking(theirs.fileno())
    pipes.close()
    ours.close()
    theirs.close()


def test_pipe_of_others_gets_no_more_than_surely_fits() -> None:
    pipes = Pipes(PortSpec("", True, "polled", "none", write_limit=3))
    pipes.driver.start()
    assert pipes.transmit(b"abcdefgh") == [0]
    assert pipes.read() == b""
    pipes.room()
    assert pipes.read() == b"abc"
    pipes.room()
    pipes.room()
    assert pipes.read() == b"defgh"
    pipes.close()
