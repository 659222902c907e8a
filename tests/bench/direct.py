# SPDX-License-Identifier: BSD-3-Clause
"""Directly on this machine: from the start of the command to the guest's first instruction.

A bare-metal guest writes to its serial port at once, so that its first byte is nearly its first
instruction, with any KVM. QEMU comes to it through its firmware.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from tests.baremetal.pool import RunningPool
from tests.bench import footprint, install, watch
from tests.bench.monitors import MICROVM, baremetal_command
from tests.bench.results import OURS, Metric, Results
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_MIB: Final = 16
LIMIT_MS: Final = 60_000
PATIENCE_SECONDS: Final = 60.0
POOLED: Final = f"{OURS}, pool"
OTHER: Final = f"{OURS}, other version"

FIRST_BYTE: Final = Metric("start to the guest's first byte on the serial port", "ms")
CPU: Final = Metric("processor time of that run, guest and end included", "ms")
MEMORY: Final = Metric("PSS beyond guest memory, guest running", "MiB")


class Bench:
    """The programs of one session."""

    def __init__(self, directory: Path, *, realtime: bool, beside: str | None = None) -> None:
        """Prepare the monitors.

        With ``realtime`` other work on this machine gets no processor that they want. ``beside`` is
        an installed ``crosvm`` of another version, to be measured as well.
        """
        self._watch = watch.build(directory)
        self._prefix = ["chrt", "--rr", "1"] if realtime else []
        crosvm = str(install.install(directory / "crosvm-py"))
        self._directory = directory
        self._crosvm = crosvm
        self._commands = {}
        for monitor in (OURS, *([OTHER] if beside else []), MICROVM):
            pvh = monitor == MICROVM
            kind, program = (OURS, beside or "") if monitor == OTHER else (monitor, crosvm)
            self._commands[monitor] = {
                name: baremetal_command(
                    kind, program, build_guest(name, directory, pvh=pvh), MEMORY_MIB
                )
                for name in ("hello", "spin")
            }

    def run(self, runs: int) -> Results:
        """Measure all monitors in turn, ``runs`` times, after one run that warms up."""
        results = Results("bare-metal guest on this machine's KVM")
        results.note_load()
        if self._prefix:
            results.notes.append("real-time priority: other work takes part only where it must")
        with self._pool() as pool:
            for number in range(runs + 1):
                pooled = self._hello_of(pool)
                if number:
                    results.add(FIRST_BYTE, POOLED, pooled.to_first_byte_ms())
                for monitor in self._commands:
                    watched = self._hello(monitor)
                    memory = self._spin(monitor)
                    if number:
                        results.add(FIRST_BYTE, monitor, watched.to_first_byte_ms())
                        results.add(CPU, monitor, watched.cpu_ms)
                        results.add(MEMORY, monitor, memory)
        results.note_load()
        return results

    def _pool(self) -> RunningPool:
        kernel = self._commands[OURS]["hello"][-1]
        program = [*self._prefix, self._crosvm]
        return RunningPool(self._directory / "pool.sock", 1, "--prepare", kernel, program=program)

    def _hello_of(self, pool: RunningPool) -> watch.Watched:
        """Run the guest in a monitor that waits; only the client's processor time is known."""
        if not pool.is_full():
            raise watch.WatchError("no monitor waits in the pool")
        program, verb, *words = self._commands[OURS]["hello"]
        return self._watch_hello([program, verb, "--pool", str(pool.path), *words])

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        command = [*self._prefix, str(self._watch), str(LIMIT_MS), "--", *command]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _hello(self, monitor: str) -> watch.Watched:
        return self._watch_hello(self._commands[monitor]["hello"])

    def _watch_hello(self, command: list[str]) -> watch.Watched:
        with self._start(command) as process:
            # Standard input stays open until the command has ended by itself.
            if process.stdout is None or process.stderr is None:
                raise watch.WatchError("no pipes")
            process.stdout.read()
            told = process.stderr.read()
            if "starting as usual" in told:
                raise watch.WatchError(told)
            return watch.parse(told)

    def _spin(self, monitor: str) -> float:
        with self._start(self._commands[monitor]["spin"]) as process:
            if process.stdout is None or process.stderr is None:
                raise watch.WatchError("no pipes")
            # The monitor may have said something before.
            found = (watch.parse_start(line) for line in process.stderr)
            pid = next((pid for pid in found if pid is not None), None)
            process.stdout.readline()
            if pid is None:
                raise watch.WatchError(f"{monitor}: the guest does not run")
            return _pss_mib(pid)


def _pss_mib(pid: int) -> float:
    """Measure from a process of its own: this one shares pages with the measured ones."""
    command = [sys.executable, "-I", "-S", footprint.__file__, str(pid), str(MEMORY_MIB << 20)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    return float(json.loads(done.stdout)["pss_mib"])
