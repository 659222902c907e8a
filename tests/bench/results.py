# SPDX-License-Identifier: BSD-3-Clause
"""Figures of several monitors side by side: kept run by run, shown as a table, saved as JSON."""

from __future__ import annotations

import json
import os
import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS: Final = "crosvm-py"

# More than this, and other work takes part of the processors that are measured.
MAX_LOAD: Final = 1.0


class Metric(NamedTuple):
    """What was measured, and of which sign good is."""

    name: str
    unit: str
    more_is_better: bool = False


class Summary(NamedTuple):
    """The runs of one monitor."""

    minimum: float
    median: float
    maximum: float


class Results:
    """Every figure of one session."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.notes: list[str] = []
        self._values: dict[Metric, dict[str, list[float]]] = {}

    def add(self, metric: Metric, monitor: str, value: float) -> None:
        """Note one run."""
        self._values.setdefault(metric, {}).setdefault(monitor, []).append(value)

    def note_load(self) -> None:
        """Note how busy this machine is, with a warning when it is too busy."""
        load = os.getloadavg()[0]
        warning = ", too high: the figures include other work" if load > MAX_LOAD else ""
        self.notes.append(f"load average {load:.2f}{warning}")

    def summaries(self) -> Iterator[tuple[Metric, dict[str, Summary]]]:
        """Return the runs of every monitor, metric by metric."""
        for metric, values in self._values.items():
            yield metric, {monitor: summarize(runs) for monitor, runs in values.items()}

    def as_json(self) -> dict[str, object]:
        """Return everything as plain data."""
        return {
            "title": self.title,
            "notes": self.notes,
            "metrics": [
                {
                    **metric._asdict(),
                    "runs": self._values[metric],
                    "summary": {name: summary._asdict() for name, summary in by_name.items()},
                    "ratio": ratios(by_name),
                }
                for metric, by_name in self.summaries()
            ],
        }

    def table(self) -> str:
        """Return the table for people."""
        lines = [self.title, *(f"  {note}" for note in self.notes)]
        head = f"{'':44} {'min':>9} {'median':>9} {'max':>9}   {OURS} / it"
        lines += ["", head, "-" * len(head)]
        for metric, by_name in self.summaries():
            better = ", more is better" if metric.more_is_better else ""
            lines.append(f"{metric.name} ({metric.unit}{better})")
            ratio = ratios(by_name)
            for monitor, summary in by_name.items():
                figures = " ".join(f"{value:9.{_digits(value)}f}" for value in summary)
                times = f"   {ratio[monitor]:.2f}" if monitor in ratio else ""
                lines.append(f"    {monitor:40} {figures}{times}")
        return "\n".join(lines)


def _digits(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1


def summarize(runs: list[float]) -> Summary:
    """Return least, median and most."""
    return Summary(min(runs), statistics.median(runs), max(runs))


def ratios(by_name: dict[str, Summary]) -> dict[str, float]:
    """Return our median divided by each peer's, as far as there are both."""
    ours = by_name.get(OURS)
    if ours is None:
        return {}
    return {
        name: ours.median / summary.median
        for name, summary in by_name.items()
        if name != OURS and summary.median
    }


def save(path: Path, results: list[Results]) -> None:
    """Write everything as JSON."""
    path.write_text(json.dumps([result.as_json() for result in results], indent=2) + "\n")
