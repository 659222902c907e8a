# SPDX-License-Identifier: BSD-3-Clause
"""When a device whose process has ended gets a new one: ``--device-restart``.

The first time at once. A process that ends again soon after it was made has the next one wait,
longer each time, so that a guest that can crash its device costs the host a bounded share.
"""

from __future__ import annotations

from sys_util.typing import Final

ALWAYS: Final = None
NEVER: Final = 0

# The longest that an answer may take: a disk's flush on a slow host fits, a hung process does not.
DEFAULT_TIMEOUT_SECONDS: Final = 30.0

# Who lived this long is not the victim of what ended the one before.
HEALTHY_SECONDS: Final = 1.0

_FIRST_DELAY_SECONDS: Final = 0.05
MAX_DELAY_SECONDS: Final = 5.0


class RestartBudget:
    """The restarts of one device. ``limit`` is how many there may be; ``ALWAYS`` for any number."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._used = 0
        self._streak = 0  # ends in a row, each soon after its start
        self._started = 0.0

    def started(self, now: float) -> None:
        """A process took over at ``now``, in seconds."""
        self._started = now

    def next_delay(self, now: float) -> float | None:
        """Count an end at ``now``; return how long to wait, ``None`` for: no process any more."""
        if self._limit is not None and self._used >= self._limit:
            return None
        self._used += 1
        if now - self._started >= HEALTHY_SECONDS:
            self._streak = 0
        streak, self._streak = self._streak, self._streak + 1
        if not streak:
            return 0.0
        return min(MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(streak - 1, 10))
