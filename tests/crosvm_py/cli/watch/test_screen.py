# SPDX-License-Identifier: BSD-3-Clause
"""A screen in a terminal: what it shows, what ends it, and that the terminal is as before."""

from __future__ import annotations

import os
import pty
import signal
import termios
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.watch.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_SECONDS = 60.0


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Return a terminal of 20 columns and 4 rows: our side, and that of the program."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (4, 20))
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read_until(fd: int, end: bytes) -> bytes:
    """Return what a terminal was sent, up to ``end``."""
    found = b""
    while not found.endswith(end):
        found += os.read(fd, 4096)
    return found


def test_lines_are_cut_to_the_terminal(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with Screen(theirs, theirs) as screen:
        screen.show(["x" * 30, *"bcdefg"])
    shown = read_until(ours, b"\x1b[?1049l")
    assert b"x" * 20 in shown
    assert b"x" * 21 not in shown
    assert b"d" in shown
    assert b"\ne" not in shown


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x04", b"zzzq"])
def test_key_ends_it_and_the_terminal_is_as_before(terminal: tuple[int, int], key: bytes) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    with Screen(theirs, theirs) as screen:
        assert termios.tcgetattr(theirs) != before
        os.write(ours, key)
        assert not screen.wait(LONG_SECONDS)
    assert termios.tcgetattr(theirs) == before
    assert read_until(ours, b"\x1b[?25h\x1b[?1049l").startswith(b"\x1b[?1049h\x1b[?25l")


def test_signal_ends_it_and_its_handler_is_as_before(terminal: tuple[int, int]) -> None:
    _, theirs = terminal
    before = signal.getsignal(signal.SIGTERM)
    with Screen(theirs, theirs) as screen:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not screen.wait(LONG_SECONDS)
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_keys_do_not_end_it(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with Screen(theirs, theirs) as screen:
        os.write(ours, b"x")
        assert screen.wait(0.01)


def test_new_size_shows_the_lines_again(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with Screen(theirs, theirs) as screen:
        screen.show(["x" * 30])
        read_until(ours, b"\x1b[J")
        termios.tcsetwinsize(theirs, (4, 25))
        os.kill(os.getpid(), signal.SIGWINCH)
        assert screen.wait(0.01)
        assert b"x" * 25 in read_until(ours, b"\x1b[J")


def test_pipe_gets_whole_lines_without_escapes() -> None:
    reading, writing = os.pipe()
    with Screen(reading, writing) as screen:
        screen.show(["x" * 300, "y"])
    assert os.read(reading, 4096) == b"x" * 300 + b"\ny\n"
    os.close(reading)
    os.close(writing)


def test_reader_that_has_gone_ends_it() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Screen(0, writing) as screen:
        screen.show(["x"])
        assert not screen.wait(LONG_SECONDS)
    os.close(writing)
