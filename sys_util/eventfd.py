# SPDX-License-Identifier: BSD-3-Clause
"""eventfd(2) counters that are shared with untrusted processes.

Every process that has the descriptor can fill the counter or empty it at any moment. So no call
here blocks, and a full or an empty counter is no error.
"""

from __future__ import annotations

import os
import select


def create_eventfd() -> int:
    """Return the descriptor of a new counter with the value 0; the caller owns it.

    Raises:
        OSError: the process has as many descriptors as it may have.
    """
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def signal_eventfd(fd: int) -> None:
    """Make ``fd`` readable. If the counter is full, it is readable already."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return


def is_signalled(fd: int) -> bool:
    """Return whether ``fd`` was signalled, and leave the counter as it is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def drain_eventfd(fd: int) -> bool:
    """Reset the counter to 0, and return whether ``fd`` was signalled."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True
