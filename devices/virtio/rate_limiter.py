# SPDX-License-Identifier: BSD-3-Clause
"""Token buckets that bound what a guest may ask of a device, in bytes and in operations.

A bucket holds ``size`` tokens and is refilled evenly, a whole bucket in ``refill_time``. Beyond
that a guest has ``one_time_burst`` tokens once, which are used first and never come back. A request
needs one token of the bucket of operations and one for each byte of the other. One that needs more
than its bucket can ever hold passes, empties it, and nothing else passes until what it took too
much would have been refilled.
"""

from __future__ import annotations

import time

from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_NAMES: Final = (
    "bw_size",
    "bw_one_time_burst",
    "bw_refill_time",
    "ops_size",
    "ops_one_time_burst",
    "ops_refill_time",
)
MAX_TOKENS: Final = (1 << 63) - 1
MAX_REFILL_MS: Final = 1000 * 3600 * 24 * 365

_NS_PER_MS: Final = 1_000_000

# Looking again costs the process a turn. So wait for more than one small request's tokens, but
# never so long that a bucket that is full meanwhile loses some.
_LEAST_WAIT_NS: Final = 5 * _NS_PER_MS

# A debt may be paid off in millions of years; epoll_wait(2) counts up to 24 days.
_MOST_WAIT_NS: Final = 3600 * 1000 * _NS_PER_MS


class RateLimits(NamedTuple):
    """Two buckets, sizes and bursts in tokens, times in milliseconds. A bucket of size 0 or of
    refill time 0 limits nothing.
    """

    bw_size: int = 0
    bw_one_time_burst: int = 0
    bw_refill_time: int = 0
    ops_size: int = 0
    ops_one_time_burst: int = 0
    ops_refill_time: int = 0

    def check(self) -> None:
        """Find values that make no sense.

        Raises:
            ConfigError: it names the first of them.
        """
        for name, value in zip(LIMIT_NAMES, self, strict=True):
            most = MAX_REFILL_MS if name.endswith("refill_time") else MAX_TOKENS
            if not 0 <= value <= most:
                raise ConfigError(f"{spelled(name)}: {value} is not in 0..{most}")
        for kind, size, burst in (
            ("bw", self.bw_size, self.bw_one_time_burst),
            ("ops", self.ops_size, self.ops_one_time_burst),
        ):
            if burst and not size:
                raise ConfigError(f"{kind}-one-time-burst: without {kind}-size nothing is limited")


def spelled(name: str) -> str:
    """Return a limit's name as the command line has it."""
    return name.replace("_", "-")


class TokenBucket:
    """One bucket, full at first. ``size`` and ``refill_ms`` are above 0."""

    __slots__ = ("_before", "_budget", "_burst", "_carry", "_last_ns", "_refill_ns", "_size")

    def __init__(self, size: int, one_time_burst: int, refill_ms: int, now_ns: int) -> None:
        self._size = size
        self._refill_ns = refill_ms * _NS_PER_MS
        self._budget = size
        self._burst = one_time_burst
        self._last_ns = now_ns
        self._carry = 0  # what is left of the last refill, in tokens times _refill_ns
        self._before = (one_time_burst, size)

    @property
    def tokens(self) -> int:
        """Tokens that are there, the burst included."""
        return self._burst + self._budget

    def take(self, tokens: int, now_ns: int) -> int:
        """Take ``tokens`` if they are there, or if the bucket can never hold them.

        Returns:
            0, and all is well; above 0, for how many ns nothing else may pass; below 0: nothing was
            taken, and so many ns are missing.
        """
        from_burst = min(self._burst, tokens)
        rest = tokens - from_burst
        if rest > self._budget:
            self._refill(now_ns)
            missing = rest - self._budget
            if rest > self._size:
                # Nothing is refilled before that: the debt is paid by waiting alone.
                self._burst -= from_burst
                self._budget = 0
                wait_ns = -(-missing * self._refill_ns // self._size)
                self._last_ns, self._carry = now_ns + wait_ns, 0
                return wait_ns
            if missing > 0:
                return -self._missing_ns(missing)
        elif not rest:
            self._last_ns, self._carry = now_ns, 0  # time does not count during the burst
        self._before = (self._burst, self._budget)
        self._burst -= from_burst
        self._budget -= rest
        return 0

    def undo(self) -> None:
        """Give back what the last ``take`` took, at the same moment."""
        self._burst, self._budget = self._before

    def drain(self) -> None:
        """Take every token, those of the burst too."""
        self._budget = self._burst = 0
        self._before = (0, 0)

    def _missing_ns(self, tokens: int) -> int:
        ns = -((self._carry - tokens * self._refill_ns) // self._size)
        return max(1, ns)

    def _refill(self, now_ns: int) -> None:
        passed = now_ns - self._last_ns
        if passed <= 0:
            return
        self._last_ns = now_ns
        if passed >= self._refill_ns:
            self._budget, self._carry = self._size, 0
            return
        tokens, self._carry = divmod(passed * self._size + self._carry, self._refill_ns)
        self._budget += tokens
        if self._budget >= self._size:
            self._budget, self._carry = self._size, 0


class RateLimiter:
    """Both buckets of one device. A request either passes or is told when to come again."""

    def __init__(self, limits: RateLimits, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """``limits`` were checked; ``clock_ns`` never goes back."""
        self._clock_ns = clock_ns
        self.configure(limits)

    def configure(self, limits: RateLimits) -> None:
        """Begin again with full buckets."""
        now_ns = self._clock_ns()
        self.limits = limits
        self._bytes = _bucket(limits[:3], now_ns)
        self._ops = _bucket(limits[3:], now_ns)
        self._closed_until_ns = 0
        self.retry_seconds = 0.0

    def drain(self) -> None:
        """Empty the buckets: somebody else has used them, nobody knows how much."""
        for bucket in (self._bytes, self._ops):
            if bucket is not None:
                bucket.drain()

    @property
    def active(self) -> bool:
        """Whether anything is limited."""
        return self._bytes is not None or self._ops is not None

    def take(self, length_bytes: int) -> bool:
        """Let a request pass, or say after how many ``retry_seconds`` it may."""
        now_ns = self._clock_ns()
        if now_ns < self._closed_until_ns:
            return self._refuse(self._closed_until_ns - now_ns, 0)
        ops, of_bytes = self._ops, self._bytes
        if ops is not None:
            wait_ns = ops.take(1, now_ns)
            if wait_ns < 0:
                return self._refuse(-wait_ns, self.limits.ops_refill_time)
        if of_bytes is not None:
            wait_ns = of_bytes.take(length_bytes, now_ns)
            if wait_ns < 0:
                if ops is not None:
                    ops.undo()
                return self._refuse(-wait_ns, self.limits.bw_refill_time)
            if wait_ns:
                self._closed_until_ns = now_ns + wait_ns
        return True

    def _refuse(self, missing_ns: int, refill_ms: int) -> bool:
        useful_ns = min(_LEAST_WAIT_NS, refill_ms * _NS_PER_MS // 2)
        self.retry_seconds = min(max(missing_ns, useful_ns), _MOST_WAIT_NS) / 1e9
        return False


def _bucket(limits: tuple[int, ...], now_ns: int) -> TokenBucket | None:
    size, burst, refill_ms = limits
    return TokenBucket(size, burst, refill_ms, now_ns) if size and refill_ms else None
