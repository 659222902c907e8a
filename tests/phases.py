# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.phases [PYTEST-ARGUMENTS…]``: all tests, in phases that end by themselves.

Phases of one stage run side by side. Every line of a phase is shown as it comes, with the time and
the phase's name before it, and a phase that says nothing for a minute is said to run still. One
that takes longer than its limit is killed with everything it has started, and the run fails. A
stage begins when the one before it has succeeded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
SILENCE_SECONDS: Final = 60.0
# Between the signal that asks a phase to end and the one that does not ask.
GRACE_SECONDS: Final = 10.0
STATUS_FAILED: Final = 1
DO_NOT_KEEP: Final = "PYTHONDONTWRITEBYTECODE"


class Phase(NamedTuple):
    """Commands that run one after the other, each ``python WORDS``, and their common limit."""

    name: str
    limit_seconds: float
    commands: tuple[tuple[str, ...], ...]


def stages(arguments: Sequence[str]) -> tuple[tuple[Phase, ...], ...]:
    """Return the phases of a whole run; ``arguments`` go to all of pytest but the checkers.

    Units wait for processes and for each other now and then, so there are more of them at once
    than processors. A test host is busy all the time: one for each processor. What only reads our
    sources is checked while Debian's kernels are fetched, and all of them are compiled then: the
    processes of the units are many, and some cannot write what they have compiled.
    """
    checks = ("tests/test_quality.py", "tests/engine/test_crate.py")
    others = ("tests/e2e", "tests/newer_debian", *checks)
    apart = tuple(f"--ignore={path}" for path in others)
    units = ("-q", "-n", "3", "--dist", "loadfile", "tests", *apart)
    guests = ("-v", "-n", "2", "--dist", "worksteal", "tests/e2e", "tests/newer_debian")
    second_try = ("-m", "tests.second_try")
    return (
        # Unit tests read Debian's kernels, too.
        (
            Phase("kernels", 600, (("-m", "tests.guests", "build", "cloud", "generic"),)),
            Phase("checks", 600, (("-m", "pytest", "-q", *checks),)),
            Phase("compile", 600, (("-m", "tests.compiled", "tests", *apart),)),
        ),
        (Phase("units", 600, ((*second_try, "units", *units, *arguments),)),),
        (
            Phase("build", 1200, (("-m", "tests.kvmhost", "build"),)),
            Phase(
                "newer",
                1200,
                (
                    ("-m", "tests.kvmhost", "build", "--release", "trixie"),
                    ("-m", "tests.newer_debian", "-q", "-rs"),
                ),
            ),
        ),
        (Phase("guests", 2400, ((*second_try, "guests", *guests, *arguments),)),),
        (Phase("report", 60, ((*second_try, "report"),)),),
    )


class Run:
    """Phases, and what they say, on one stream."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.clock = time.monotonic
        self._started = self.clock()
        self._lock = threading.RLock()  # a signal's handler may want it where it is held
        self._running: set[int] = set()
        self._is_stopped = False
        self.silence_seconds = SILENCE_SECONDS
        self.grace_seconds = GRACE_SECONDS

    def say(self, name: str, text: str) -> None:
        """Print a line of a phase."""
        minutes, seconds = divmod(int(self.clock() - self._started), 60)
        with self._lock:
            self._out.write(f"{minutes:3d}:{seconds:02d} {name}: {text}\n")
            self._out.flush()

    def stage(self, phases: Sequence[Phase]) -> bool:
        """Run phases side by side, each to its end; return whether all of them succeeded."""
        succeeded: list[str] = []

        def one(phase: Phase) -> None:
            if self._phase(phase):
                succeeded.append(phase.name)

        threads = [threading.Thread(target=one, args=(phase,)) for phase in phases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(succeeded) == len(phases)

    def stop(self) -> None:
        """Kill every phase that runs; none is started any more."""
        with self._lock:
            self._is_stopped = True
            running = list(self._running)
        for group in running:
            _kill_group(group, signal.SIGKILL)

    def _phase(self, phase: Phase) -> bool:
        began = self.clock()
        deadline = began + phase.limit_seconds
        self.say(phase.name, f"begins; it may take {phase.limit_seconds:.0f} s")
        for words in phase.commands:
            failure = self._command(phase.name, words, deadline)
            if failure:
                self.say(phase.name, f"FAILED: {' '.join(words[:4])}: {failure}")
                return False
        self.say(phase.name, f"done in {self.clock() - began:.0f} s")
        return True

    def _command(self, name: str, words: Sequence[str], deadline: float) -> str:
        """Run one command in a session of its own; return why it failed, or nothing."""
        with self._lock:
            if self._is_stopped:
                return "stopped"
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
                errors="replace",
                env=_environment(),
            )
            self._running.add(process.pid)
        last = [self.clock()]
        reader = threading.Thread(target=self._pass_on, args=(name, process, last), daemon=True)
        reader.start()
        try:
            return self._watch(name, process, last, deadline)
        finally:
            # What it has left behind may hold its output open for ever.
            _kill_group(process.pid, signal.SIGKILL)
            reader.join(self.grace_seconds)
            with self._lock:
                self._running.discard(process.pid)

    def _watch(
        self, name: str, process: subprocess.Popen[str], last: list[float], deadline: float
    ) -> str:
        while True:
            until = min(deadline, last[0] + self.silence_seconds)
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(max(0.0, until - self.clock()))
                return f"status {status}" if status else ""
            now = self.clock()
            if now >= deadline:
                _kill_group(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.grace_seconds)
                return "took longer than its limit, killed"
            if now >= last[0] + self.silence_seconds:
                self.say(name, "still runs")
                last[0] = now

    def _pass_on(self, name: str, process: subprocess.Popen[str], last: list[float]) -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                last[0] = self.clock()
                self.say(name, line.rstrip("\n"))


def _environment() -> dict[str, str]:
    """Return our own, in which Python keeps what it has compiled."""
    return {name: value for name, value in os.environ.items() if name != DO_NOT_KEEP}


def _kill_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def main(arguments: Sequence[str]) -> int:
    run = Run(sys.stderr)

    def end(number: int, _frame: object) -> None:
        run.stop()
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    for phases in stages(arguments):
        if not run.stage(phases):
            run.say("run", f"FAILED in {', '.join(phase.name for phase in phases)}")
            return STATUS_FAILED
    run.say("run", "all tests passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
