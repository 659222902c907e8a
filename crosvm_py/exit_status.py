# SPDX-License-Identifier: BSD-3-Clause
"""How a VM can end, and the exit status of ``crosvm`` for each case.

| how                    | --extended-status | without |
|------------------------|-------------------|---------|
| stopped, power-off     | 0                 | 0       |
| reset                  | 32                | 0       |
| crash                  | 33                | 33      |
| guest panic            | 34                | 1       |
| watchdog               | 36                | 1       |

An error before or during the run is 1, a command line that cannot be parsed 35, a bug of ours 70.
Without ``--extended-status``, crosvm exits with 0 even after a crash or a panic, so scripts that
restart failed VMs do not notice. Here neither is 0, and a crash has the same number in both cases.
"""

from __future__ import annotations

import os

from sys_util.enum import IntEnum
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


# The exit status of each of our processes after a bug of ours, which the log describes (EX_SOFTWARE
# of sysexits.h), and the status of a process beside the vmm after an error of the host.
EXIT_BUG: Final = 70
EXIT_HOST: Final = 1
# The status that a shell shows for a process that SIGINT ended.
INTERRUPTED: Final = 130

_PLAIN: Final = {
    VmExit.RESET: 0,
    VmExit.GUEST_PANIC: 1,
    VmExit.WATCHDOG: 1,
}


def exit_status(vm_exit: VmExit, *, extended: bool) -> int:
    """Return the status that the process exits with."""
    return int(vm_exit) if extended else _PLAIN.get(vm_exit, int(vm_exit))


def describe_end(wait_status: int) -> str:
    """Say how a child ended, of which waitpid(2) returned this status."""
    status = os.waitstatus_to_exitcode(wait_status)
    return f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
