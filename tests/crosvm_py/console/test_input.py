# SPDX-License-Identifier: BSD-3-Clause
"""Input from files, pipes and terminals, held back when the guest does not read."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from crosvm_py.console import input as console_input
from crosvm_py.console.input import ConsoleInput, TerminalInput, input_from, open_input
from crosvm_py.console.terminal import EscapeKey, Terminal
from sys_util.errors import HostError
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOM = 32


class FakeUart:
    """A UART whose guest reads when the test says so."""

    def __init__(self) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self.waiting = b""
        self.breaks = 0

    @property
    def room(self) -> int:
        return ROOM - len(self.waiting)

    def receive(self, data: bytes) -> int:
        taken = data[: self.room]
        self.waiting += taken
        return len(taken)

    def send_break(self) -> None:
        self.breaks += 1

    def guest_reads(self) -> bytes:
        data, self.waiting = self.waiting, b""
        self.on_room()
        return data


@pytest.fixture
def uart() -> FakeUart:
    return FakeUart()


def serve(loop: EventLoop, uart: FakeUart, rounds: int = 5) -> bytes:
    """Let the guest read all there is."""
    data = b""
    for _ in range(rounds):
        loop.run_once(0)
        data += uart.guest_reads()
    return data


@pytest.fixture(params=["own description", "shared description"])
def pipe(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, ConsoleInput]]:
    if request.param == "shared description":
        monkeypatch.setattr(console_input, "reopen", lambda _fd, _flags: None)
    reader, writer = os.pipe()
    source = input_from(reader)
    os.close(reader)
    yield writer, source
    source.close()
    os.close(writer)


def test_pipe_bytes_arrive_as_they_are(
    pipe: tuple[int, ConsoleInput], uart: FakeUart, loop: EventLoop
) -> None:
    writer, source = pipe
    source.start(uart, loop, threading.RLock())
    os.write(writer, b"\x01x\x00\xff\r\n")
    assert serve(loop, uart) == b"\x01x\x00\xff\r\n"


def test_pipe_is_not_read_ahead_of_the_guest(
    pipe: tuple[int, ConsoleInput], uart: FakeUart, loop: EventLoop
) -> None:
    writer, source = pipe
    source.start(uart, loop, threading.RLock())
    os.write(writer, bytes(range(200)))
    for _ in range(5):
        loop.run_once(0)
    assert uart.waiting == bytes(range(ROOM - 1))
    assert not source._watched
    assert serve(loop, uart, 20) == bytes(range(200))


def test_pipe_end_stops_reading(uart: FakeUart, loop: EventLoop) -> None:
    reader, writer = os.pipe()
    source = ConsoleInput(reader)
    source.start(uart, loop, threading.RLock())
    os.write(writer, b"last")
    os.close(writer)
    assert serve(loop, uart) == b"last"
    assert not source._watched
    source.close()
    source.close()


def test_regular_file_is_read_as_the_guest_reads(
    tmp_path: Path, uart: FakeUart, loop: EventLoop
) -> None:
    path = tmp_path / "script"
    path.write_bytes(bytes(range(200)))
    source = open_input(str(path))
    source.start(uart, loop, threading.RLock())
    assert uart.room == 1
    assert serve(loop, uart, 20) == bytes(range(200))
    source.close()


def test_dev_null_is_an_input_that_ends(uart: FakeUart, loop: EventLoop) -> None:
    source = open_input(os.devnull)
    source.start(uart, loop, threading.RLock())
    assert serve(loop, uart) == b""
    source.close()


def test_fifo_takes_one_writer_after_the_other(
    tmp_path: Path, uart: FakeUart, loop: EventLoop
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = open_input(str(path))
    source.start(uart, loop, threading.RLock())
    for text in (b"one", b"two"):
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, text)
        os.close(writer)
        assert serve(loop, uart) == text
    source.close()


@pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), (".", "Is a directory")])
def test_input_that_cannot_be_read_names_the_option(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(HostError, match="open --serial input=") as caught:
        open_input(str(tmp_path / name))
    assert reason in str(caught.value.__cause__)


def until(loop: EventLoop, condition: Callable[[], bool]) -> None:
    """Run the loop until something has come through a terminal, which takes its time."""
    for _ in range(100):
        if condition():
            return
        loop.run_once(5.0)
    raise AssertionError("it never came")


class Reader:
    """A guest that reads from a terminal."""

    def __init__(self, loop: EventLoop, uart: FakeUart) -> None:
        self._loop = loop
        self._uart = uart
        self.data = b""

    def read(self, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        until(self._loop, lambda: len(self._take()) >= length)
        data, self.data = self.data, b""
        return data

    def _take(self) -> bytes:
        self.data += self._uart.guest_reads()
        return self.data


class Console:
    """A terminal with a user at one end and the input under test at the other."""

    def __init__(self) -> None:
        self.user, self.program = os.openpty()
        self.terminal = Terminal(self.program)
        self.input = TerminalInput(os.dup(self.program), self.terminal, EscapeKey())
        self.left = 0
        self.helped = 0
        self.input.on_leave = self._leave
        self.input.on_help = self._help

    def _leave(self) -> None:
        self.left += 1

    def _help(self) -> None:
        self.helped += 1

    def type(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def close(self) -> None:
        self.input.close()
        self.terminal.leave()
        os.close(self.program)
        if self.user >= 0:
            os.close(self.user)


@pytest.fixture
def console(uart: FakeUart, loop: EventLoop) -> Iterator[Console]:
    console = Console()
    console.input.start(uart, loop, threading.RLock())
    yield console
    console.close()


def test_terminal_is_raw_and_keys_go_to_the_guest(
    console: Console, uart: FakeUart, loop: EventLoop
) -> None:
    assert console.terminal.is_raw
    console.type(b"ls\r\x03")
    assert Reader(loop, uart).read(4) == b"ls\r\x03"


def test_terminal_keys_for_us_do_what_they_say(
    console: Console, uart: FakeUart, loop: EventLoop
) -> None:
    console.type(b"a\x01h\x01bc\x01xmore")
    until(loop, lambda: console.left == 1)
    assert uart.guest_reads() == b"ac"
    assert not console.input._watched


@pytest.mark.parametrize(
    ("keys", "counts"), [(b"\x01h", (1, 0)), (b"\x01?", (1, 0)), (b"\x01b", (0, 1))]
)
def test_terminal_help_and_break_keys(
    console: Console, uart: FakeUart, loop: EventLoop, keys: bytes, counts: tuple[int, int]
) -> None:
    console.type(keys + b"z")
    assert Reader(loop, uart).read(1) == b"z"
    assert (console.helped, uart.breaks) == counts


def test_terminal_leaves_a_guest_that_hangs(
    console: Console, uart: FakeUart, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_input, "PATIENCE_SECONDS", 0.0)
    console.type(b"x" * 200)
    until(loop, lambda: uart.room == 0)
    console.type(b"\x01x")
    until(loop, lambda: console.left == 1)
    assert len(uart.waiting) <= ROOM


def test_terminal_paste_to_a_guest_that_reads_is_whole(
    console: Console, uart: FakeUart, loop: EventLoop
) -> None:
    paste = bytes(range(0x20, 0x7F)) * 4
    console.type(paste)
    assert Reader(loop, uart).read(len(paste)) == paste


def test_terminal_that_hangs_up_ends_the_input(
    console: Console, uart: FakeUart, loop: EventLoop
) -> None:
    os.close(console.user)
    console.user = -1
    until(loop, lambda: not console.input._watched)
    assert uart.guest_reads() == b""


def test_background_vm_waits_for_the_foreground(
    uart: FakeUart, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_input, "FOREGROUND_SECONDS", 0.0)
    console = Console()
    foreground = [False]
    monkeypatch.setattr(console.terminal, "in_foreground", lambda: foreground[0])
    console.input.start(uart, loop, threading.RLock())
    assert serve(loop, uart) == b""
    before = console.terminal.is_raw
    foreground[0] = True
    until(loop, lambda: console.terminal.is_raw)
    console.type(b"hello\n")
    assert Reader(loop, uart).read(6) == b"hello\n"
    assert (before, console.terminal.is_raw) == (False, True)
    console.close()
