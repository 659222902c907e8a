# SPDX-License-Identifier: BSD-3-Clause
"""Phases end by themselves, and say where they are."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.phases import ROOT, Phase, Run, stages

if TYPE_CHECKING:
    from pathlib import Path

LONG_SECONDS = 500.0
HANGS = "import subprocess; print('here', flush=True); subprocess.run(['sleep', '1000'])"


class Output(io.StringIO):
    """What was said; ``seen`` is set, and ``act`` is done, when a line has ``awaited`` in it."""

    def __init__(self, awaited: str = "\0") -> None:
        super().__init__()
        self.awaited = awaited
        self.seen = threading.Event()

    def write(self, text: str) -> int:
        done = super().write(text)
        if self.awaited in text:
            self.seen.set()
        return done


def phase(code: str, *, name: str = "one", limit_seconds: float = LONG_SECONDS) -> Phase:
    return Phase(name, limit_seconds, (("-c", code),))


def texts(out: Output) -> list[str]:
    """Return what was said, without the times."""
    lines = out.getvalue().splitlines()
    assert all(re.match(r" *\d+:\d\d [a-z]+: ", line) for line in lines), lines
    return [line.strip().partition(" ")[2] for line in lines]


def has_ended(pid: int) -> bool:
    """Wait a while for the end of a process."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = bool(select.select([pidfd], [], [], LONG_SECONDS)[0])
    os.close(pidfd)
    return ended


def test_stage_passes_on_what_its_phases_say() -> None:
    out = Output()
    code = "import sys; print('to stdout'); sys.stdout.flush(); sys.exit('to stderr')"
    assert not Run(out).stage([phase("print('fine')"), phase(code, name="two")])
    said = texts(out)
    assert {"one: fine", "two: to stdout", "two: to stderr"} <= set(said)
    assert "two: FAILED: -c " + code + ": status 1" in said
    assert any(line.startswith("one: done in ") for line in said)


def test_commands_after_one_that_fails_are_left_out() -> None:
    out = Output()
    commands = (("-c", "print('first')"), ("-c", "exit(3)"), ("-c", "print('third')"))
    assert not Run(out).stage([Phase("one", LONG_SECONDS, commands)])
    assert "one: first" in texts(out)
    assert "one: third" not in texts(out)


def test_phase_that_hangs_is_killed_with_its_children_and_named(tmp_path: Path) -> None:
    out = Output("slow: here")
    run = Run(out)
    run.silence_seconds = 0.01
    run.clock = lambda: time.monotonic() + LONG_SECONDS * out.seen.is_set()
    file = str(tmp_path / "pid")
    code = (
        "import subprocess; child = subprocess.Popen(['sleep', '1000']); "
        f"open({file!r}, 'w').write(str(child.pid)); print('here', flush=True); child.wait()"
    )
    assert not run.stage([phase(code, name="slow")])
    assert any(line.endswith("took longer than its limit, killed") for line in texts(out))
    assert has_ended(int((tmp_path / "pid").read_text()))


def test_silent_phase_is_said_to_run_still(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    out = Output("one: still runs")
    run = Run(out)
    run.silence_seconds = 0.01

    def wake() -> None:
        if out.seen.wait(LONG_SECONDS):
            fifo.write_text("go on")

    waker = threading.Thread(target=wake, daemon=True)
    waker.start()
    assert run.stage([phase(f"open({str(fifo)!r}).read()")])
    waker.join()


def test_no_phase_begins_after_a_stop() -> None:
    out = Output("one: here")
    run = Run(out)

    def stop() -> None:
        if out.seen.wait(LONG_SECONDS):
            run.stop()

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    commands = (("-c", HANGS), ("-c", "print('second')"))
    assert not run.stage([Phase("one", LONG_SECONDS, commands)])
    stopper.join()
    assert "one: second" not in texts(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_and_its_phases(number: int) -> None:
    code = f"""
from tests import phases
phases.stages = lambda _words: [[phases.Phase("one", {LONG_SECONDS}, (("-c", {HANGS!r}),))]]
exit(phases.main([]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "one: here" in line:
                process.send_signal(number)
        assert process.wait(LONG_SECONDS) == 128 + number


def test_python_keeps_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    out = Output()
    assert Run(out).stage([phase("import sys; print('kept', not sys.dont_write_bytecode)")])
    assert "one: kept True" in texts(out)


def test_every_test_is_in_one_phase_and_arguments_reach_pytest() -> None:
    words = [
        command
        for stage in stages(["-x"])
        for one in stage
        for command in one.commands
        if {"pytest", "tests.second_try"} & set(command) and "report" not in command
    ]
    checks, units, guests = words
    assert "tests" in units
    ignored = {word.partition("=")[2] for word in units if word.startswith("--ignore=")}
    elsewhere = {word for word in (*checks, *guests) if word.startswith("tests/")}
    assert ignored == elsewhere
    assert all((ROOT / path).exists() for path in elsewhere)
    assert units[-1] == guests[-1] == "-x"
