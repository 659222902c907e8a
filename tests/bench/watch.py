# SPDX-License-Identifier: BSD-3-Clause
"""``watch.c``: build it, and read what it saw."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("watch.c")
_NS_PER_MS: Final = 1e6
_US_PER_MS: Final = 1e3


class WatchError(Exception):
    """The command did not do what a benchmark needs."""


class Watched(NamedTuple):
    """One run of a command. Times are CLOCK_MONOTONIC's nanoseconds."""

    start_ns: int
    pid: int
    byte_ns: int | None
    marker_ns: dict[str, int]
    exit_ns: int
    status: int
    cpu_us: int

    def to_first_byte_ms(self) -> float:
        """Return how long the first byte of output took.

        Raises:
            WatchError: there was none.
        """
        if self.byte_ns is None:
            raise WatchError(f"no output, status {self.status}")
        return self.since_start_ms(self.byte_ns)

    def to_marker_ms(self, marker: str) -> float:
        """Return how long ``marker`` took.

        Raises:
            WatchError: it never came.
        """
        if marker not in self.marker_ns:
            raise WatchError(f"no {marker!r} in the output, status {self.status}")
        return self.since_start_ms(self.marker_ns[marker])

    def since_start_ms(self, at_ns: int) -> float:
        """Return the time from the start to ``at_ns``."""
        return (at_ns - self.start_ns) / _NS_PER_MS

    @property
    def cpu_ms(self) -> float:
        """The processor time of the command and of all that it reaped."""
        return self.cpu_us / _US_PER_MS


def parse_start(text: str) -> int | None:
    """Return the command's process id once ``watch`` has told it."""
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["watch:", "start"]:
            return int(words[3])
    return None


def parse(text: str) -> Watched:
    """Read what ``watch`` wrote, among what the command itself wrote to standard error.

    Raises:
        WatchError: it is not complete.
    """
    start_ns = pid = exit_ns = status = cpu_us = -1
    byte_ns: int | None = None
    marker_ns: dict[str, int] = {}
    for line in text.splitlines():
        match line.split(maxsplit=3):
            case ["watch:", "start", at, rest]:
                start_ns, pid = int(at), int(rest)
            case ["watch:", "byte", at]:
                byte_ns = int(at)
            case ["watch:", "marker", at, marker]:
                marker_ns[marker] = int(at)
            case ["watch:", "exit", at, rest]:
                exit_ns = int(at)
                status, cpu_us = (int(word) for word in rest.split())
    if min(start_ns, exit_ns) < 0:
        raise WatchError(f"watch has not come to its end: {text[-500:]!r}")
    return Watched(start_ns, pid, byte_ns, marker_ns, exit_ns, status, cpu_us)


def build(directory: Path) -> Path:
    """Compile ``watch`` into ``directory``, static: it also runs in the test host.

    Raises:
        WatchError: the compiler refused.
    """
    output = directory / "watch"
    command = [
        "gcc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-static",
        "-o",
        str(output),
        str(SOURCE),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise WatchError(result.stderr)
    return output
