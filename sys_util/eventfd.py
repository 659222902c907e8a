# SPDX-License-Identifier: BSD-3-Clause
"""eventfd(2) counters that are shared with processes nobody trusts.

Whoever holds the descriptor can leave the counter at its maximum or empty it at any moment, so
both calls here are non-blocking and neither outcome is an error.
"""

from __future__ import annotations

import os
import select


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


def is_signalled(fd: int) -> bool:
    """Return whether there is anything, without taking it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def drain_eventfd(fd: int) -> bool:
    """Forget what was signalled and return whether there was anything."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True
