# SPDX-License-Identifier: BSD-3-Clause
"""Sinks against real pipes, terminals, sockets and files whose readers stop and go away."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from crosvm_py.console import targets
from crosvm_py.console.output import (
    BACKLOG_BYTES,
    MAX_LINE_BYTES,
    LineSink,
    NullSink,
    StreamSink,
)
from crosvm_py.console.targets import open_file, open_syslog, open_unix, sink_to, stream_to
from sys_util.errors import HostError
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = b"0123456789abcdef" * 4


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


class Pipe:
    """Two ends; the sink gets the writing one."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer
        os.set_blocking(reader, False)

    def read(self) -> bytes:
        data = b""
        while True:
            try:
                piece = os.read(self.reader, 1 << 16)
            except BlockingIOError:
                return data
            if not piece:
                return data
            data += piece

    def read_exactly(self, length: int) -> bytes:
        """Wait for the bytes; a terminal passes them on in its own time."""
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        data = b""
        while len(data) < length and poller.poll(10_000):
            data += self.read()
        return data

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


def make_pipe(kind: str) -> Pipe:
    if kind == "terminal":
        user, program = os.openpty()
        return Pipe(user, program)
    if kind == "socket":
        left, right = socket.socketpair()
        return Pipe(left.detach(), right.detach())
    return Pipe(*os.pipe())


@pytest.fixture(
    params=[
        "pipe",
        "terminal",
        "socket",
        "pipe polled",
        pytest.param("terminal polled", marks=pytest.mark.slow),
    ]
)
def pipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    kind, _, polled = request.param.partition(" ")
    if polled:
        monkeypatch.setattr(targets, "reopen", lambda _fd, _flags: None)
    pair = make_pipe(kind)
    yield pair
    pair.close()


def test_what_fits_is_written_at_once(pipe: Pipe) -> None:
    sink = stream_to(pipe.writer, "test")
    for value in b"hello":
        sink.write(bytes((value,)))
    assert pipe.read_exactly(5) == b"hello"
    sink.close()


def test_shared_description_stays_blocking(pipe: Pipe) -> None:
    sink = stream_to(pipe.writer, "test")
    sink.write(b"x")
    assert os.get_blocking(pipe.writer)
    sink.close()
    assert os.get_blocking(pipe.writer)
    os.write(pipe.writer, b"y")


def test_stopped_reader_neither_blocks_nor_grows(pipe: Pipe, loop: EventLoop) -> None:
    sink = stream_to(pipe.writer, "test")
    sink.attach(loop, threading.RLock())
    for _ in range(3 * BACKLOG_BYTES // len(LINE)):
        sink.write(LINE)
    assert sink._backlog_bytes <= BACKLOG_BYTES
    assert sum(map(len, sink._backlog)) == sink._backlog_bytes
    assert len(sink._backlog) <= 8
    assert sink.dropped_bytes > 0
    sink.close()


def test_reader_that_returns_gets_the_backlog_in_order(
    pipe: Pipe, loop: EventLoop, lines: list[str]
) -> None:
    sink = stream_to(pipe.writer, "test")
    sink.attach(loop, threading.RLock())
    sent = b"".join(b"%07x\r" % number for number in range(BACKLOG_BYTES // 16))
    for at in range(0, len(sent), 8):
        sink.write(sent[at : at + 8])
    assert sink._backlog_bytes > 0
    received = b""
    while len(received) < len(sent):
        received += pipe.read()
        loop.run_once(0)
    assert received == sent
    assert lines == []
    sink.write(b"!")
    assert pipe.read_exactly(1) == b"!"
    assert not sink._watched
    sink.close()


def test_drops_are_counted_in_one_message_when_the_reader_is_back(
    loop: EventLoop, lines: list[str]
) -> None:
    pair = make_pipe("pipe")
    sink = stream_to(pair.writer, "test")
    sink.attach(loop, threading.RLock())
    capacity = fcntl.fcntl(pair.writer, fcntl.F_GETPIPE_SZ) + BACKLOG_BYTES
    for _ in range(capacity // len(LINE) + 10):
        sink.write(LINE)
    assert lines == []
    while sink._backlog_bytes:
        pair.read()
        loop.run_once(0)
    assert lines == [f"test: {10 * len(LINE)} bytes dropped: the reader is too slow"]
    sink.close()
    pair.close()
    assert len(lines) == 1


def test_closed_reader_turns_the_sink_into_nothing(pipe: Pipe, lines: list[str]) -> None:
    sink = stream_to(pipe.writer, "test")
    pipe.close_reader()
    for _ in range(100):
        sink.write(LINE)
    assert sink._backlog_bytes == 0
    assert len(lines) == 1
    assert "output goes nowhere from here on" in lines[0]
    sink.close()


def test_reader_that_closes_with_a_backlog_frees_it(loop: EventLoop, lines: list[str]) -> None:
    pair = make_pipe("pipe")
    sink = stream_to(pair.writer, "test")
    sink.attach(loop, threading.RLock())
    for _ in range(2 * BACKLOG_BYTES // len(LINE)):
        sink.write(LINE)
    loop.run_once(0)
    pair.close_reader()
    loop.run_once(0)
    assert sink._backlog_bytes == 0
    assert not sink._watched
    assert lines == ["test: Broken pipe; output goes nowhere from here on"]
    sink.close()
    pair.close()


def test_backlog_before_the_loop_exists_is_written_by_later_writes() -> None:
    pair = make_pipe("pipe")
    sink = stream_to(pair.writer, "test")
    capacity = fcntl.fcntl(pair.writer, fcntl.F_GETPIPE_SZ)
    sink.write(b"a" * capacity)
    sink.write(b"b")
    assert pair.read() == b"a" * capacity
    sink.write(b"c")
    sink.drain(0.0)
    assert pair.read() == b"bc"
    sink.close()
    pair.close()


def test_drain_gives_a_stopped_reader_no_more_than_its_time(lines: list[str]) -> None:
    pair = make_pipe("pipe")
    sink = stream_to(pair.writer, "test")
    for _ in range(2 * BACKLOG_BYTES // len(LINE)):
        sink.write(LINE)
    sink.drain(0.01)
    sink.close()
    sink.close()
    sink.write(b"late")
    pair.close()
    assert len(lines) == 1


def test_file_offset_is_shared_with_the_program_that_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb", buffering=0) as file:
        file.write(b"before ")
        sink = stream_to(file.fileno(), "stdout")
        sink.write(b"guest")
        sink.close()
        file.write(b" after")
    assert path.read_bytes() == b"before guest after"


def test_file_is_created_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "con.log"
    for text in (b"one\n", b"two\n"):
        sink = sink_to(open_file(str(path)))
        sink.write(text)
        sink.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_file_may_name_an_open_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file:
        sink = sink_to(open_file(f"/proc/self/fd/{file.fileno()}"))
        sink.write(b"x")
        sink.close()
        assert file.tell() == 1


def test_fifo_without_a_reader_waits_for_one(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = sink_to(open_file(str(path)))
    sink.write(b"early")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 16) == b"early"
    os.close(reader)
    sink.write(b"again")
    sink.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param(".", "Is a directory", id="directory"),
        pytest.param("missing/con.log", "No such file", id="no directory"),
        pytest.param("socket", "No such device or address", id="socket"),
    ],
)
def test_file_that_cannot_be_written_names_the_option(
    tmp_path: Path, name: str, reason: str
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        path = str(tmp_path / name)
        with pytest.raises(HostError, match="open --serial path=") as caught:
            open_file(path)
    assert reason in str(caught.value.__cause__)


def test_full_disk_loses_output_and_goes_on(lines: list[str]) -> None:
    sink = sink_to(open_file("/dev/full"))
    sink.write(b"lost")
    sink.write(b"too")
    sink.close()
    assert lines == [
        "--serial path=/dev/full: 7 bytes dropped: No space left on device",
    ]


def test_closed_descriptor_is_a_host_error() -> None:
    with pytest.raises(HostError, match="write to stdout"):
        stream_to(9999, "stdout")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.setblocking(False)
        yield receiver


def received(receiver: socket.socket) -> list[bytes]:
    lines = []
    while True:
        try:
            lines.append(receiver.recv(1 << 16))
        except BlockingIOError:
            return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        pytest.param([b"one\ntwo\n"], [b"one", b"two"], id="lines"),
        pytest.param([b"o", b"ne\r", b"\n"], [b"one"], id="byte by byte"),
        pytest.param([b"\n\n"], [b"", b""], id="empty lines"),
        pytest.param([b"a\rb\n"], [b"a\rb"], id="inner CR"),
        pytest.param([b"tail"], [b"tail"], id="unfinished at the end"),
        pytest.param(
            [b"x" * (2 * MAX_LINE_BYTES + 1) + b"\n"],
            [b"x" * MAX_LINE_BYTES, b"x" * MAX_LINE_BYTES, b"x"],
            id="too long",
        ),
    ],
)
def test_unix_sends_a_datagram_for_each_line(
    tmp_path: Path, receiver: socket.socket, pieces: list[bytes], lines: list[bytes]
) -> None:
    sink = sink_to(open_unix(str(tmp_path / "log")))
    for piece in pieces:
        sink.write(piece)
    sink.drain(0.0)
    sink.close()
    assert received(receiver) == lines


def test_unix_connects_to_a_path_longer_than_an_address(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        here = os.open(tmp_path, os.O_RDONLY)
        receiver.bind(f"/proc/self/fd/{here}/{'d' * 60}")
        os.close(here)
        os.rename(tmp_path / ("d" * 60), directory / "log")
        sink = sink_to(open_unix(str(directory / "log")))
        sink.write(b"long\n")
        sink.close()
        assert receiver.recv(16) == b"long"


def test_unix_without_a_receiver_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"type=unix,path=.*nobody \(a datagram socket must be"):
        open_unix(str(tmp_path / "nobody"), wait_seconds=0.0)


def test_slow_receiver_of_datagrams_gets_all_lines(
    tmp_path: Path, receiver: socket.socket, loop: EventLoop
) -> None:
    sink = sink_to(open_unix(str(tmp_path / "log")))
    sink.attach(loop, threading.RLock())
    for number in range(1000):
        sink.write(b"%d\n" % number)
    lines: list[bytes] = []
    while len(lines) < 1000:
        lines += received(receiver)
        loop.run_once(0)
    assert lines == [b"%d" % number for number in range(1000)]
    sink.close()


def test_stopped_receiver_of_empty_lines_does_not_grow_the_backlog(
    tmp_path: Path, receiver: socket.socket
) -> None:
    sink = sink_to(open_unix(str(tmp_path / "log")))
    for _ in range(10_000):
        sink.write(b"\n")
    assert len(sink._backlog) < BACKLOG_BYTES // 64
    sink.close()


def test_syslog_lines_carry_priority_and_tag(tmp_path: Path, receiver: socket.socket) -> None:
    sink = sink_to(open_syslog("crosvm-guest", str(tmp_path / "log")))
    sink.write(b"hello\r\n\n")
    sink.close()
    assert received(receiver) == [b"<14>crosvm-guest[%d]: hello" % os.getpid()]


def test_syslog_without_a_daemon_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"type=syslog to .*is syslog there"):
        open_syslog("crosvm-guest", str(tmp_path / "nobody"))


def test_null_sink_takes_everything(loop: EventLoop) -> None:
    sink = NullSink()
    sink.attach(loop, threading.RLock())
    sink.write(b"x")
    sink.drain(1.0)
    sink.close()


def test_sinks_are_of_the_expected_kind(tmp_path: Path, receiver: socket.socket) -> None:
    sink = sink_to(open_unix(str(tmp_path / "log")))
    assert isinstance(sink, LineSink)
    assert isinstance(sink, StreamSink)
    sink.close()
