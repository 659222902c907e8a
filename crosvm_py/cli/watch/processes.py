# SPDX-License-Identifier: BSD-3-Clause
"""What proc(5) tells of the processes of a VM: a process and all that descend from it.

Which processes belong to a VM the kernel says, and not the VM, which a guest may have taken over.
Everything here is readable for every user, unless /proc is mounted with ``hidepid``.
"""

from __future__ import annotations

import os

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# A VM has some twenty. What has taken one over must not fill the terminal.
MAX_PROCESSES: Final = 512
_PROC: Final = "/proc"


class Process(NamedTuple):
    """One process; ``began`` and its id together are not used a second time.

    ``private_bytes`` is the memory in use that is neither of a file nor shared. Guest memory is
    shared.
    """

    pid: int
    parent: int
    name: str
    began: int
    cpu_seconds: float
    private_bytes: int
    shared_bytes: int


def find_processes(root: int, proc: str = _PROC) -> tuple[Process, ...]:
    """Return the process ``root`` and its descendants, parents first; nothing if it is gone."""
    found = {process.pid: process for process in _read_all(proc)}
    children: dict[int, list[Process]] = {}
    for process in found.values():
        children.setdefault(process.parent, []).append(process)
    todo = [found[root]] if root in found else []
    family: list[Process] = []
    while todo and len(family) < MAX_PROCESSES:
        process = todo.pop()
        family.append(process)
        todo += sorted(children.pop(process.pid, ()), key=lambda each: -each.pid)
    return tuple(family)


def _read_all(proc: str) -> Iterator[Process]:
    try:
        names = os.listdir(proc)
    except OSError:
        return
    for name in names:
        if name.isascii() and name.isdigit():
            process = _read(proc, int(name))
            if process is not None:
                yield process


def _read(proc: str, pid: int) -> Process | None:
    try:
        stat, statm = (_text(f"{proc}/{pid}/{name}") for name in ("stat", "statm"))
        _, resident, shared = (int(word) for word in statm.split()[:3])
        name = stat.partition(b"(")[2].rpartition(b")")[0].decode("utf-8", "replace")
        words = stat.rpartition(b")")[2].split()
        page = os.sysconf("SC_PAGE_SIZE")
        return Process(
            pid,
            int(words[1]),
            name,
            int(words[19]),
            _seconds(words),
            max(0, resident - shared) * page,
            shared * page,
        )
    except (OSError, ValueError, IndexError):  # it has ended meanwhile
        return None


def thread_seconds(pid: int, thread_id: int, proc: str = _PROC) -> float | None:
    """Return the processor time of a thread, or ``None`` if the process has no such thread."""
    try:
        stat = _text(f"{proc}/{pid}/task/{thread_id}/stat")
        return _seconds(stat.rpartition(b")")[2].split())
    except (OSError, ValueError, IndexError):
        return None


def age_seconds(process: Process, proc: str = _PROC) -> float:
    """Return how long ago a process began."""
    try:
        uptime = float(_text(f"{proc}/uptime").split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - process.began / os.sysconf("SC_CLK_TCK"))


def _seconds(words: list[bytes]) -> float:
    """Return user and system time (fields 14 and 15 of proc_pid_stat(5), counted from 3)."""
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _text(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
