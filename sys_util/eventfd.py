# SPDX-License-Identifier: BSD-3-Clause
"""eventfd(2) counters that are shared with processes nobody trusts.

Whoever holds the descriptor can leave the counter at its maximum or empty it at any moment, so
both calls here are non-blocking and neither outcome is an error.
"""

from __future__ import annotations

import os


def create_eventfd() -> int:
    """Return a new counter of 0, which the caller owns.

    Raises:
        OSError: no descriptor is left.
    """
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def signal_eventfd(fd: int) -> None:
    """Make ``fd`` readable; one that is full already is."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return


def drain_eventfd(fd: int) -> bool:
    """Forget what was signalled and return whether there was anything."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True
