# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the test host: ``groups.py PATH`` prints what is in the groups of VMs below ``PATH``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

FILES: Final = ("memory.max", "memory.events", "memory.stat", "pids.max", "cpu.weight")


def main(arguments: list[str]) -> None:
    root = Path(arguments[0])
    found = {}
    for group in sorted(root.glob("crosvm-*")):
        for each in (group, *(entry for entry in sorted(group.iterdir()) if entry.is_dir())):
            found[str(each.relative_to(root))] = {
                "processes": [int(pid) for pid in (each / "cgroup.procs").read_text().split()],
                "files": {name: (each / name).read_text().strip() for name in FILES},
            }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
