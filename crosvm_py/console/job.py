# SPDX-License-Identifier: BSD-3-Clause
"""Whether the user's shell has put our job into the foreground of its terminal.

The kernel answers that for a process of the terminal's session. A monitor from a pool is in no such
session, so it asks about the client that the user started, and that is in place of it.
"""

from __future__ import annotations

import os

from sys_util.typing import Final

# /dev/tty, which is whatever terminal a process has.
_DEV_TTY: Final = os.makedev(5, 0)
_MOST_BYTES: Final = 4096
# Fields of /proc/PID/stat behind the name in parentheses (proc(5)), counted from "state".
_PGRP, _TTY_NR, _TPGID = 2, 4, 5


class CallersJob:
    """The job of another process. Owns ``fd``, its /proc/PID/stat, which also a filter allows."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def of(cls, pid: int) -> CallersJob:
        """Return the job of process ``pid``.

        Raises:
            OSError: there is no such process.
        """
        return cls(os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC))

    def in_foreground(self, terminal_fd: int) -> bool:
        """Return whether it may read the terminal; True also if that is not its own terminal."""
        try:
            os.lseek(self.fd, 0, os.SEEK_SET)
            fields = os.read(self.fd, _MOST_BYTES).rpartition(b")")[2].split()
            number = os.fstat(terminal_fd).st_rdev
        except OSError:  # it has ended
            return True
        pgrp, tty, foreground = (int(fields[at]) for at in (_PGRP, _TTY_NR, _TPGID))
        return foreground == pgrp or number not in (_device(tty), _DEV_TTY)


_callers: CallersJob | None = None


def set_job(job: CallersJob) -> None:
    """Take ``job`` for our own from now on."""
    global _callers
    _callers = job


def is_callers() -> bool:
    """Return whether the job is another process's, so that no signal or error stops our reads."""
    return _callers is not None


def in_foreground(fd: int) -> bool:
    """Return whether we may read the terminal ``fd``, so that no job control signal can stop us."""
    if _callers is not None:
        return _callers.in_foreground(fd)
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # it is not our controlling terminal, so there is no job control


def _device(tty_nr: int) -> int:
    """Return the device number that stat(2) has for a tty_nr (new_encode_dev in the kernel)."""
    return os.makedev(tty_nr >> 8 & 0xFFF, tty_nr & 0xFF | tty_nr >> 12 & 0xFFF00)
