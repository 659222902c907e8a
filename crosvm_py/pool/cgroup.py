# SPDX-License-Identifier: BSD-3-Clause
"""Move a monitor into the control group of its client (cgroups(7))."""

from __future__ import annotations

import os

from sys_util.typing import Final

_V2: Final = "0::"
_MOUNTS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


def join_cgroup(pid: int) -> None:
    """Enter the group of process ``pid``, as a child of it would be born there.

    Raises:
        OSError: the kernel refuses it.
        ValueError: it is in another group of a version 1 hierarchy.
    """
    ours, theirs = _groups("self"), _groups(pid)
    if ours == theirs:
        return
    for line in theirs - ours:
        if not line.startswith(_V2):
            raise ValueError(f"another group of cgroup v1: {line}")
    (path,) = (line.removeprefix(_V2) for line in theirs if line.startswith(_V2))
    for mount in _MOUNTS:
        if os.path.exists(f"{mount}/cgroup.controllers"):
            with open(f"{mount}{path}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
            return
    raise ValueError("no cgroup2 file system is mounted where it usually is")


def _groups(pid: int | str) -> set[str]:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return set(file.read().splitlines())
