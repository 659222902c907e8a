# SPDX-License-Identifier: BSD-3-Clause
"""How a VM can end, and what status ``crosvm`` then exits with.

| how                    | --extended-status | without |
|------------------------|-------------------|---------|
| stopped, power-off     | 0                 | 0       |
| reset                  | 32                | 0       |
| crash                  | 33                | 33      |
| guest panic            | 34                | 1       |
| watchdog               | 36                | 1       |

An error of ours before or during the run is 1, a command line that cannot be read 35, a bug 70.
crosvm without ``--extended-status`` exits with 0 after a crash and a panic, too; scripts that
restart what failed never learn of it, so here neither is 0, and a crash keeps its number.
"""

from __future__ import annotations

from enum import IntEnum

from sys_util.typing import Final


class VmExit(IntEnum):
    """Why the program ends; the values are crosvm's exit statuses."""

    STOPPED = 0
    ERROR = 1
    RESET = 32
    CRASH = 33
    GUEST_PANIC = 34
    USAGE = 35
    WATCHDOG = 36


# With what each process of ours exits for a bug of ours, which the log describes (sysexits.h,
# EX_SOFTWARE), and with what a process beside the vmm exits where the host failed it.
EXIT_BUG: Final = 70
EXIT_HOST: Final = 1
# What a shell shows for a process that SIGINT ended.
INTERRUPTED: Final = 130

_PLAIN: Final = {
    VmExit.RESET: 0,
    VmExit.GUEST_PANIC: 1,
    VmExit.WATCHDOG: 1,
}


def exit_status(vm_exit: VmExit, *, extended: bool) -> int:
    """Return the status that the process exits with."""
    return int(vm_exit) if extended else _PLAIN.get(vm_exit, int(vm_exit))
