# SPDX-License-Identifier: BSD-3-Clause
"""When a device whose process has ended gets a new one: ``--device-restart``.

The first restart comes at once. While each process ends before it has served for a while, each
further restart waits longer, so that a guest that can crash its device, or a host that cannot make
processes, uses a bounded share of the host. By default the number of restarts is limited, too: a
device that fails too often in a minute is given up.
"""

from __future__ import annotations

from collections import deque

from crosvm_py.care import Rate
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.care import RestartLimit


# If a process has served for so long, its end is not counted with the ends before it.
HEALTHY_SECONDS: Final = 1.0

_FIRST_DELAY_SECONDS: Final = 0.05
MAX_DELAY_SECONDS: Final = 5.0


class RestartBudget:
    """The restarts of one device; ``limit`` says how many are allowed."""

    def __init__(self, limit: RestartLimit) -> None:
        self._limit = limit
        self._used = 0
        self._times: deque[float] = deque()  # of the last restarts, if the limit is a rate
        self._streak = 0  # how many processes in a row have ended early
        self._ready_at: float | None = None  # when the present process became ready

    def ready(self, now: float) -> None:
        """Note that a process is ready at ``now``, in seconds."""
        self._ready_at = now

    def next_delay(self, now: float) -> float | None:
        """Count the end of a process at ``now``; one that could not be made counts as well.

        Returns:
            The seconds to wait before the next process is made; ``None`` if the device gets none.
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
        """Say how many restarts were used up, as in "once" or "5 times within 60 s"."""
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
