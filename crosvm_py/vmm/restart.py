# SPDX-License-Identifier: BSD-3-Clause
"""When a device whose process has ended gets a new one: ``--device-restart``.

The first time at once. As long as no process gets ready and lives a while, each next one waits
longer, so that a guest that can crash its device, or a host that can make no process, costs a
bounded share of the host. By default there is also an end: a device that fails too often in a
minute is lost to the guest.
"""

from __future__ import annotations

from collections import deque

from crosvm_py.care import Rate
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.care import RestartLimit


# A process that has served for so long has not ended for the reason the one before it did.
HEALTHY_SECONDS: Final = 1.0

_FIRST_DELAY_SECONDS: Final = 0.05
MAX_DELAY_SECONDS: Final = 5.0


class RestartBudget:
    """The restarts of one device, of which ``limit`` says how many there may be."""

    def __init__(self, limit: RestartLimit) -> None:
        self._limit = limit
        self._used = 0
        self._times: deque[float] = deque()  # of the last restarts, where there is a rate
        self._streak = 0  # ends in a row, none of them of a process that lived a while
        self._ready_at: float | None = None  # of the present process

    def ready(self, now: float) -> None:
        """A process is ready at ``now``, in seconds."""
        self._ready_at = now

    def next_delay(self, now: float) -> float | None:
        """Count an end, or a process that could not be made, at ``now``.

        Returns:
            The seconds to wait until the next process is made, ``None`` for: there is none.
        """
        if not self._take(now):
            return None
        if self._ready_at is not None and now - self._ready_at >= HEALTHY_SECONDS:
            self._streak = 0
        self._ready_at = None
        streak, self._streak = self._streak, self._streak + 1
        if not streak:
            return 0.0
        return min(MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(streak - 1, 10))

    def describe(self) -> str:
        """Say what was used up, as in "it was restarted once"."""
        if isinstance(self._limit, Rate):
            return f"{_times(self._limit.restarts)} within {self._limit.seconds:.0f} s"
        return _times(self._used)

    def _take(self, now: float) -> bool:
        limit, times = self._limit, self._times
        if isinstance(limit, Rate):
            while times and now - times[0] >= limit.seconds:
                times.popleft()
            if len(times) >= limit.restarts:
                return False
            times.append(now)
        elif limit is not None and self._used >= limit:
            return False
        self._used += 1
        return True


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
