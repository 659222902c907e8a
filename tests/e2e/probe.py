# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the test host: ``probe.py PID`` prints what /proc says of a process and all below it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

NAMESPACES: Final = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")


def _lines(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: " ".join(value.split()) for name, _, value in pairs}


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError as error:  # it ended meanwhile
        return f"?{error.errno}"


def process_facts(pid: int) -> dict[str, object]:
    """Return the facts of one process."""
    here = Path("/proc") / str(pid)
    status = _lines((here / "status").read_text())
    mounts = [line.split() for line in (here / "mountinfo").read_text().splitlines()]
    return {
        "pid": pid,
        "parent": int(status["PPid"]),
        "name": status["Name"],
        "namespaces": {name: _link(here / "ns" / name) for name in NAMESPACES},
        "status": status,
        # Not its own user's where nobody may trace or dump it (proc(5)).
        "owner": (here / "environ").stat().st_uid,
        "root": sorted(entry.name for entry in (here / "root").iterdir()),
        "root_options": next((words[5] for words in mounts if words[4] == "/"), ""),
        "fds": {entry.name: _link(entry) for entry in sorted((here / "fd").iterdir())},
        "limits": {
            line[:26].strip(): line[26:].split()[0]
            for line in (here / "limits").read_text().splitlines()[1:]
        },
    }


def below(pid: int) -> list[int]:
    """Return ``pid`` and every process below it, parents first."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += below(int(child))
    return found


def main(arguments: list[str]) -> None:
    facts = [process_facts(pid) for pid in below(int(arguments[0]))]
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1:])
