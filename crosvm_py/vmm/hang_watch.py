# SPDX-License-Identifier: BSD-3-Clause
"""Notice a device process that answers the vmm and yet serves no queue."""

from __future__ import annotations

import select
import time

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class HangWatch:
    """How long kicks of the driver have been unread by one process."""

    def __init__(self) -> None:
        # While a kick is unread: the count of kicks served, and since when it has not changed.
        self._unserved: tuple[int, float] | None = None

    def forget(self) -> None:
        """Start again: no kick is unread, or another process serves now."""
        self._unserved = None

    def unserved_seconds(self, kick_fds: Iterable[int], served: int) -> float:
        """Return for how long kicks have waited while ``served``, their count, did not change.

        ``kick_fds`` are eventfds, which are polled and not read.
        """
        now = time.monotonic()
        if not _is_any_readable(kick_fds):
            self._unserved = None
            return 0.0
        if self._unserved is None or self._unserved[0] != served:
            self._unserved = (served, now)
        return now - self._unserved[1]


def _is_any_readable(fds: Iterable[int]) -> bool:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
