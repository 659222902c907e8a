# SPDX-License-Identifier: BSD-3-Clause
"""What confinement costs: exits of a guest to the vmm, and system calls of a device.

Exits with ``--disable-sandbox`` and without; system calls under no filter, under a device's own,
and under the warden's and its own, which is how a device runs.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from seccomp import load_policy
from sys_util import linux
from tests.bench import install
from tests.bench.results import OURS, Metric, Results
from tests.bench.watch import WatchError
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS: Final = 10_000  # as the guest, exits.c, has it
OPEN: Final = "no filter"
DEVICE_ALONE: Final = "the device's filter alone"
LETTERS: Final = b"ABCDE"
EXITS: Final = (
    Metric("exit: read of a port", "µs"),
    Metric("exit: read of a PCI register", "µs"),
    Metric("two exits, and an interrupt line up and down", "µs"),
    Metric("exit: one byte to the console", "µs"),
)

CALLS: Final = 20_000
SERIES: Final = 5
POLICIES: Final = {
    OURS: ("warden", "block_device"),
    DEVICE_ALONE: ("block_device",),
    OPEN: (),
}


class Bench:
    """The programs of one session."""

    def __init__(self, directory: Path) -> None:
        crosvm = str(install.install(directory / "crosvm-py"))
        guest = str(build_guest("exits", directory))
        self._commands = {
            OURS: [crosvm, "run", "-m", "16", guest],
            OPEN: [crosvm, "run", "-m", "16", "--disable-sandbox", guest],
        }
        self._file = directory / "file"
        self._file.write_bytes(bytes(4096))

    def run(self, runs: int) -> Results:
        """Measure everything in turn, ``runs`` times, after one run that warms up."""
        results = Results("cost of the filters, on this machine's KVM")
        results.note_load()
        for number in range(runs + 1):
            for name, command in self._commands.items():
                for metric, value in zip(EXITS, measure_exits(command), strict=True):
                    if number:
                        results.add(metric, name, value)
            for name, policies in POLICIES.items():
                for call, value in measure_calls(policies, self._file).items():
                    if number:
                        results.add(Metric(f"system call: {call}", "ns"), name, value)
        results.note_load()
        return results


def measure_exits(command: list[str]) -> list[float]:
    """Run the guest; return the microseconds of one round of each way."""
    seen: list[float] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        if process.stdout is None:
            raise WatchError("no pipe")
        while data := os.read(process.stdout.fileno(), 65536):
            now = time.perf_counter()
            seen += [now for byte in data if byte in LETTERS]
    if len(seen) != len(LETTERS):
        raise WatchError(f"the guest came to letter {len(seen)} of {len(LETTERS)}")
    return [(end - start) / ROUNDS * 1e6 for start, end in pairwise(seen)]


def measure_calls(policies: tuple[str, ...], file: Path) -> dict[str, float]:
    """Return the nanoseconds of each call in a process under ``policies``, Python's part in it."""
    filters = [load_policy(name).bpf for name in policies]
    fd = os.open(file, os.O_RDONLY)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            calls = _calls(fd)
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            for bpf in filters:
                linux.load_seccomp_filter(bpf)
            report = json.dumps({name: _fastest_ns(call) for name, call in calls.items()}).encode()
            for at in range(0, len(report), 128):  # a device writes no more at a time
                os.write(write_end, report[at : at + 128])
        finally:
            os._exit(0)
    os.close(write_end)
    os.close(fd)
    with open(read_end, "rb") as pipe:
        report = pipe.read()
    os.waitpid(pid, 0)
    if not report:
        raise WatchError(f"a call is denied by {policies}")
    measured: dict[str, float] = json.loads(report)
    return measured


def _calls(fd: int) -> dict[str, Callable[[], object]]:
    """Return what a disk does for a request. The filters look at the arguments of all but one."""
    counter = os.eventfd(CALLS * SERIES, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
    epoll = select.epoll()
    epoll.register(counter)
    buffer = bytearray(4096)
    return {
        "epoll_wait": lambda: epoll.poll(0),
        "read of an eventfd": lambda: os.eventfd_read(counter),
        "preadv2 of 4 KiB": lambda: os.preadv(fd, [buffer], 0),
    }


def _fastest_ns(call: Callable[[], object]) -> float:
    """Return the time of one call in the fastest of several series."""
    fastest = float("inf")
    for _ in range(SERIES):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        fastest = min(fastest, time.perf_counter_ns() - start)
    return fastest / CALLS
