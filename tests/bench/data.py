# SPDX-License-Identifier: BSD-3-Clause
"""How long devices take for a request of a guest: ours with the engine and without it, and QEMU's.

A bare-metal guest polls its rings (``tests/guests/baremetal/polled.h``), so that what is measured
is the device, and what a kick costs. One processor is the vCPU's, another the device's.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.bench.data_disks import Disks
from tests.bench.data_frames import Card
from tests.bench.placement import place
from tests.bench.results import Metric, Results
from tests.bench.watch import WatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS: Final = {"r": "read", "w": "write"}


class Measurement(NamedTuple):
    """A line of the guest's report."""

    metric: Metric
    requests: int
    cycles: int


class Report(NamedTuple):
    """What one guest reported."""

    hz: float  # of its time stamp counter
    measurements: list[Measurement]

    def microseconds(self) -> Iterator[tuple[Metric, float]]:
        """Yield how long each kind of request took."""
        for metric, requests, cycles in self.measurements:
            yield metric, cycles / requests / self.hz * 1e6


class Reader:
    """Reads a guest's report line by line."""

    def __init__(self) -> None:
        self.is_ready = False
        self.to_fill = (0, 0)  # bytes and number of frames that the guest wants to find in the TAP
        self._clock: list[tuple[float, int]] = []
        self._measurements: list[Measurement] = []

    def line(self, text: str, now: float) -> None:
        """Take one line, which came at ``now`` seconds.

        Raises:
            WatchError: the guest says that something went wrong.
        """
        match text.split():
            case ["ready"]:
                self.is_ready = True
            case ["clock", cycles]:
                self._clock.append((now, int(cycles, 16)))
            case ["block", kind, cache, *numbers]:
                length, depth, requests, taken, errors = (int(number, 16) for number in numbers)
                if errors:
                    raise WatchError(f"{errors} requests failed: {text}")
                name = f"{length >> 10} KiB {KINDS[kind]}, {cache}, depth {depth}"
                self._measurements.append(Measurement(Metric(name, "µs"), requests, taken))
            case ["frame", direction, *numbers]:
                length, frames, taken = (int(number, 16) for number in numbers)
                metric = Metric(f"frame of {length} bytes, {direction}", "µs")
                self._measurements.append(Measurement(metric, frames, taken))
            case ["fill", length, frames]:
                self.to_fill = (int(length, 16), int(frames, 16))
            case ["no", *missing]:
                raise WatchError(f"the guest has no {' '.join(missing)}")

    def report(self) -> Report:
        """Return the whole report.

        Raises:
            WatchError: the guest did not come to its end.
        """
        if len(self._clock) != 2:
            raise WatchError("the guest did not come to its end")
        (began, first), (ended, last) = self._clock
        return Report((last - first) / (ended - began), self._measurements)


def run_guest(
    command: list[str], *, realtime: bool, fill: Callable[[int, int], None] | None = None
) -> Report:
    """Run a guest that waits for a byte before it measures; place its monitor before that.

    ``fill`` puts frames into the TAP, so many bytes and so many of them.
    """
    reader = Reader()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise WatchError("no pipes")
        try:
            for line in process.stdout:
                reader.line(line.decode(errors="replace"), time.monotonic())
                if reader.is_ready:
                    reader.is_ready = False
                    place(process.pid, realtime=realtime)
                    if fill is not None and reader.to_fill != (0, 0):
                        fill(*reader.to_fill)
                    process.stdin.write(b"\n")
                    process.stdin.flush()
        finally:
            process.terminate()
    return reader.report()


class Bench:
    """The programs of one session."""

    def __init__(self, directory: Path, *, realtime: bool) -> None:
        """With ``realtime`` other work gets no processor that a monitor wants."""
        self._directory = directory
        self._realtime = realtime

    def run(self, runs: int) -> Results:
        """Measure all monitors in turn, ``runs`` times, after one run that warms up."""
        results = Results("requests and frames of a bare-metal guest on this machine's KVM")
        results.note_load()
        if self._realtime:
            results.notes.append("real-time priority: other work takes part only where it must")
        with Disks(self._directory) as disks, Card(self._directory) as card:
            for number in range(runs + 1):
                for monitor, command in disks.commands.items():
                    self._measure(results if number else None, monitor, command)
                for monitor, command in card.commands.items():
                    self._measure(results if number else None, monitor, command, card.fill)
        results.note_load()
        return results

    def _measure(
        self,
        results: Results | None,
        monitor: str,
        command: list[str],
        fill: Callable[[int, int], None] | None = None,
    ) -> None:
        report = run_guest(command, realtime=self._realtime, fill=fill)
        if results is not None:
            for metric, value in report.microseconds():
                results.add(metric, monitor, value)
