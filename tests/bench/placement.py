# SPDX-License-Identifier: BSD-3-Clause
"""Give every thread of a running monitor its processor and the same claim to it.

A monitor may be several processes, some of them in a session of their own. Linux divides processors
between sessions first (sched_autogroup), so the nice value of a process alone means nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# What vCPU threads are called by crosvm-py and by QEMU.
VCPU_NAMES: Final = ("vcpu0", "CPU 0/KVM")
HIGHEST: Final = -20
REALTIME_PRIORITY: Final = 1

_PROC: Final = Path("/proc")


def descendants(pid: int) -> Iterator[int]:
    """Yield ``pid`` and the processes that come from it."""
    yield pid
    for task in threads(pid):
        with suppress(OSError):
            for child in (_PROC / f"{pid}/task/{task}/children").read_text().split():
                yield from descendants(int(child))


def threads(pid: int) -> list[int]:
    """Return the thread ids of a process that lives."""
    return [int(task.name) for task in (_PROC / f"{pid}/task").iterdir()]


def place(pid: int, *, realtime: bool) -> None:
    """Put the vCPU on the first of our processors, and all that serves it on the last.

    With ``realtime`` other work on this machine waits for them; else they get the highest nice
    value, and so do their sessions.

    Raises:
        LookupError: no thread is called as a vCPU is.
    """
    processors = sorted(os.sched_getaffinity(0))
    found = False
    for process in descendants(pid):
        if not realtime:
            with suppress(FileNotFoundError):
                (_PROC / f"{process}/autogroup").write_text(str(HIGHEST))
        for thread in threads(process):
            is_vcpu = (_PROC / f"{process}/task/{thread}/comm").read_text().strip() in VCPU_NAMES
            found |= is_vcpu
            os.sched_setaffinity(thread, processors[:1] if is_vcpu else processors[-1:])
            if realtime:
                parameter = os.sched_param(REALTIME_PRIORITY)
                os.sched_setscheduler(thread, os.SCHED_RR, parameter)
            else:
                os.setpriority(os.PRIO_PROCESS, thread, HIGHEST)
    if not found:
        raise LookupError(f"no vCPU among the threads of process {pid}")
