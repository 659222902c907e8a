# SPDX-License-Identifier: BSD-3-Clause
"""What a monitor takes of its host: memory beyond the guest's, processor time beyond the guest's.

    python3 -I -S footprint.py PID GUEST_BYTES

prints JSON for the process and everything below it. It also runs in the test host, so it needs
nothing but Python. Memory is PSS, in which a page shared by n processes counts 1/n for each; the
mapping of guest memory is left out, which is the one that is at least as large as the guest.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Final, NamedTuple

MEMFD_NAME: Final = "memfd:crosvm_guest"

# Fields of /proc/PID/stat after the name, counted from 0 (proc_pid_stat(5)).
_PPID: Final = 1
_TIMES: Final = slice(11, 15)  # utime, stime, cutime, cstime
_GUEST_TIMES: Final = slice(40, 42)  # guest_time, cguest_time, which utime and cutime include


class Stat(NamedTuple):
    """One process, from /proc/PID/stat."""

    name: str
    parent: int
    own_ticks: int


def parse_stat(text: str) -> Stat:
    """Read /proc/PID/stat; the name in it may contain anything."""
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 1 :].split()
    ticks = sum(map(int, fields[_TIMES])) - sum(map(int, fields[_GUEST_TIMES]))
    return Stat(name, int(fields[_PPID]), ticks)


def pss_kib(smaps: str, guest_bytes: int) -> int:
    """Add up the PSS of every mapping but guest memory."""
    total = 0
    counts = True
    for line in smaps.splitlines():
        key, _, value = line.partition(":")
        if key == "Size":
            counts = counts and int(value.split()[0]) * 1024 < guest_bytes
        elif key == "Pss":
            total += int(value.split()[0]) if counts else 0
        elif " " in key:  # the head of a mapping: addresses, permissions, …, name
            counts = MEMFD_NAME not in line
    return total


def below(root: int, parents: dict[int, int]) -> list[int]:
    """Return ``root`` and every process below it, given the parent of each process."""
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def measure(root: int, guest_bytes: int) -> dict[str, object]:
    """Return the footprint of ``root`` and everything below it."""
    stats = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                stats[int(name)] = parse_stat(file.read())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    processes = below(root, {pid: stat.parent for pid, stat in stats.items()})
    memory = {}
    for pid in processes:
        with open(f"/proc/{pid}/smaps") as file:
            memory[f"{stats[pid].name} {pid}"] = pss_kib(file.read(), guest_bytes)
    ticks = sum(stats[pid].own_ticks for pid in processes)
    return {
        "pss_mib": sum(memory.values()) / 1024,
        "cpu_ms": ticks * 1000 / os.sysconf("SC_CLK_TCK"),
        "processes_kib": memory,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))) + "\n")
