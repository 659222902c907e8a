# SPDX-License-Identifier: BSD-3-Clause
"""Sinks for real pipes, terminals, sockets and files, whose readers stop reading or end."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from crosvm_py.console import targets
from crosvm_py.console.output import BACKLOG_BYTES, NullSink
from crosvm_py.console.targets import stream_to
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b"0123456789abcdef" * 4


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


def test_null_sink_takes_everything(loop: EventLoop) -> None:
    sink = NullSink()
    sink.attach(loop, threading.RLock())
    sink.write(b"x")
    sink.drain(1.0)
    sink.close()
