# SPDX-License-Identifier: BSD-3-Clause
"""Raw mode on a real pseudo-terminal, and the keys that leave the guest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest

from crosvm_py.console import terminal
from crosvm_py.console.terminal import Action, EscapeKey, Terminal, TerminalState

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]


class Pty:
    """A pseudo-terminal: the user's end and the program's end."""

    def __init__(self) -> None:
        self.user, self.program = os.openpty()

    def close(self) -> None:
        for fd in (self.user, self.program):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pty() -> Iterator[Pty]:
    pair = Pty()
    yield pair
    pair.close()


@pytest.mark.parametrize(
    ("typed", "passed", "action"),
    [
        pytest.param([b"ls\r"], b"ls\r", None, id="plain"),
        pytest.param([b"\x03\x1a\x1c"], b"\x03\x1a\x1c", None, id="signals are the guest's"),
        pytest.param([b"\x01x"], b"", Action.LEAVE, id="leave"),
        pytest.param([b"ab\x01xcd"], b"ab", Action.LEAVE, id="leave ends the input"),
        pytest.param([b"\x01", b"x"], b"", Action.LEAVE, id="in two pieces"),
        pytest.param([b"\x01\x01"], b"\x01", None, id="Ctrl-A twice"),
        pytest.param([b"\x01a"], b"\x01", None, id="Ctrl-A a"),
        pytest.param([b"\x01\x01x"], b"\x01x", None, id="Ctrl-A twice, then x"),
        pytest.param([b"\x01b"], b"", Action.BREAK, id="break"),
        pytest.param([b"a\x01hb"], b"ab", Action.HELP, id="help goes on"),
        pytest.param([b"\x01?"], b"", Action.HELP, id="help by question mark"),
        pytest.param([b"\x01k"], b"\x01k", None, id="unknown key"),
        pytest.param([b"\x01"], b"", None, id="nothing yet"),
        pytest.param([b"\x01h\x01b"], b"", Action.BREAK, id="the last one counts"),
        pytest.param([b""], b"", None, id="empty"),
    ],
)
def test_escape_key(typed: list[bytes], passed: bytes, action: Action | None) -> None:
    keys = EscapeKey()
    results = [keys.feed(piece) for piece in typed]
    assert b"".join(result[0] for result in results) == passed
    assert results[-1][1] is action


def test_raw_mode_passes_every_key_at_once(pty: Pty) -> None:
    terminal.make_raw(pty.program)
    os.write(pty.user, b"\x03\r\x04")
    assert os.read(pty.program, 16) == b"\x03\r\x04"


def test_raw_mode_keeps_output_processing(pty: Pty) -> None:
    terminal.make_raw(pty.program)
    os.write(pty.program, b"log\n")
    assert os.read(pty.user, 16) == b"log\r\n"


def test_restore_gives_the_exact_modes_back(pty: Pty) -> None:
    before = termios.tcgetattr(pty.program)
    state = terminal.make_raw(pty.program)
    assert termios.tcgetattr(pty.program) != before
    terminal.restore(pty.program, state)
    assert termios.tcgetattr(pty.program) == before


def test_state_survives_msgpack(pty: Pty) -> None:
    state = terminal.save(pty.program)
    fields = msgpack.unpackb(msgpack.packb(state))
    assert isinstance(fields, list)
    assert TerminalState(*fields) == state


def test_restore_only_if_raw_leaves_another_programs_modes_alone(pty: Pty) -> None:
    state = terminal.make_raw(pty.program)
    theirs = state._replace(local_modes=state.local_modes ^ termios.ECHO)
    terminal.apply(pty.program, theirs)
    terminal.restore(pty.program, state, only_if_raw=True)
    assert terminal.save(pty.program) == theirs


def test_restore_only_if_raw_restores_what_a_killed_process_left(pty: Pty) -> None:
    state = terminal.make_raw(pty.program)
    terminal.restore(pty.program, state, only_if_raw=True)
    assert terminal.save(pty.program) == state


def test_restore_of_a_terminal_that_hung_up_is_quiet(pty: Pty) -> None:
    state = terminal.make_raw(pty.program)
    os.close(pty.user)
    pty.user = -1
    terminal.restore(pty.program, state)
    terminal.restore(9999, state)


def test_save_of_no_terminal_raises() -> None:
    with (
        open(os.devnull, "rb") as file,
        pytest.raises(OSError, match="Inappropriate ioctl for device"),
    ):
        terminal.save(file.fileno())


def test_terminal_enter_and_leave_may_be_repeated(pty: Pty) -> None:
    owner = Terminal(pty.program)
    before = termios.tcgetattr(pty.program)
    owner.leave()
    owner.enter()
    owner.enter()
    assert termios.tcgetattr(pty.program) != before
    owner.leave()
    owner.leave()
    assert termios.tcgetattr(pty.program) == before


def test_terminal_enter_on_a_dead_terminal_is_quiet(pty: Pty) -> None:
    owner = Terminal(pty.program)
    os.close(pty.user)
    pty.user = -1
    owner.enter()
    assert not owner.is_raw


def test_job_control_signals_are_handled_and_given_back() -> None:
    numbers = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT)
    before = [signal.getsignal(number) for number in numbers]
    continued: list[bool] = []
    undo = terminal.handle_job_control(lambda: continued.append(True))
    during = [signal.getsignal(number) for number in numbers]
    signal.raise_signal(signal.SIGCONT)
    undo()
    assert during[:2] == [signal.SIG_IGN, signal.SIG_IGN]
    assert continued == [True]
    assert [signal.getsignal(number) for number in numbers] == before


def test_terminal_leave_in_the_background_keeps_the_shells_modes(
    pty: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Terminal(pty.program)
    owner.enter()
    monkeypatch.setattr(owner, "in_foreground", lambda: False)
    shells = owner.state._replace(local_modes=owner.state.local_modes ^ termios.ECHO)
    terminal.apply(pty.program, shells)
    owner.leave()
    assert terminal.save(pty.program) == shells


# The session leader takes the terminal as its own, gives the foreground to a second process group
# and then, in the background, restores the modes. Stopped by SIGTTOU it would never say so.
BACKGROUND = """
import fcntl, os, sys, termios
from crosvm_py.console import terminal

os.setsid()
fd = int(sys.argv[1])
fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
state = terminal.make_raw(fd)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    terminal.restore(fd, state)
    print(terminal.in_foreground(fd), terminal.save(fd) == state, flush=True)
    os._exit(0)
_, status = os.waitpid(child, os.WUNTRACED)
sys.exit(os.WIFSTOPPED(status))
"""


@pytest.mark.slow
def test_restore_from_a_background_process_group_is_not_stopped(pty: Pty) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BACKGROUND, str(pty.program)],
        cwd=ROOT,
        pass_fds=[pty.program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "False True\n", "")
