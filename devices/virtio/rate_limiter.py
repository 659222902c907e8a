# SPDX-License-Identifier: BSD-3-Clause
"""Token buckets that bound what a guest may ask of a device, in bytes and in operations.

A bucket holds ``size`` tokens and is refilled evenly, a whole bucket in ``refill_time``. Beyond
that a guest has ``one_time_burst`` tokens once, which are used first and never come back. A request
needs one token of the bucket of operations and one for each byte of the other. A request that needs
more than its bucket can ever hold passes; then the bucket owes the rest, and nothing else passes
until refills have paid the debt.

Before a request is carried out, it needs tokens for the bytes that its driver claims. Afterwards
it is charged for the bytes that it moved. The device tells these by ``settle`` or ``give_back``, so
that a request that it refuses leaves no debt. A debt for bytes that were moved stays, even through
a reset of the device: otherwise guests would reset it instead of waiting.
"""

from __future__ import annotations

import time

from devices.virtio.counters import LimitWaits
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple
from sys_util.wire import integer, record

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

# Each retry costs the process a turn. So it waits for the tokens of more than one small request,
# but never so long that the bucket is full before and tokens are lost.
_LEAST_WAIT_NS: Final = 5 * _NS_PER_MS

# To pay a debt may take millions of years; the longest timeout of epoll_wait(2) is 24 days.
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
        """Refuse values that make no sense.

        Raises:
            ConfigError: it names the first such value.
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


# The limits as a field of a message. ``check`` refuses more than this does.
RATE_LIMITS: Final = record(RateLimits, *(integer(0, MAX_TOKENS) for _ in LIMIT_NAMES))


def spelled(name: str) -> str:
    """Return a limit's name as the command line has it."""
    return name.replace("_", "-")


class TokenBucket:
    """One bucket, full at first. ``size`` and ``refill_ms`` are above 0."""

    __slots__ = ("_burst", "_carry", "_last_ns", "_most_burst", "_refill_ns", "_size", "budget")

    def __init__(self, size: int, one_time_burst: int, refill_ms: int, now_ns: int) -> None:
        self.budget = size  # as of _last_ns; below 0 it is a debt
        self._size = size
        self._refill_ns = refill_ms * _NS_PER_MS
        self._burst = self._most_burst = one_time_burst
        self._last_ns = now_ns
        self._carry = 0  # what is left of the last refill, in tokens times _refill_ns

    @property
    def tokens(self) -> int:
        """The tokens that are there, the burst included; below 0, the debt."""
        return self._burst + self.budget

    def take(self, tokens: int, now_ns: int) -> int:
        """Take ``tokens`` if they are there, or if a bucket without debt can never hold them.

        Returns:
            0 if they were taken. Otherwise nothing was, and this is the ns until it can be.
        """
        if self.budget < 0 and (missing_ns := self.debt_ns(now_ns)):
            return missing_ns
        from_burst = min(self._burst, tokens)
        rest = tokens - from_burst
        if rest > self.budget:
            self._refill(now_ns)
            if self.budget < rest <= self._size:
                return self._missing_ns(rest - self.budget)
        elif not rest:
            self._last_ns, self._carry = now_ns, 0  # no refill while the burst lasts
        self._burst -= from_burst
        self.budget -= rest
        return 0

    def debt_ns(self, now_ns: int) -> int:
        """Return the ns until the bucket owes nothing; 0 if it owes nothing now."""
        self._refill(now_ns)
        return self._missing_ns(-self.budget) if self.budget < 0 else 0

    def charge(self, tokens: int, now_ns: int) -> None:
        """Take ``tokens`` that were used already; those that are not there become a debt."""
        self._refill(now_ns)
        from_burst = min(self._burst, tokens)
        self._burst -= from_burst
        self.budget -= tokens - from_burst

    def give_back(self, tokens: int) -> None:
        """Take back ``tokens`` that were not used after all."""
        to_budget = min(tokens, self._size - self.budget)
        self.budget += to_budget
        self._burst = min(self._burst + tokens - to_budget, self._most_burst)

    def drain(self) -> None:
        """Take every token, those of the burst too."""
        self.budget = self._burst = self._most_burst = 0

    def _missing_ns(self, tokens: int) -> int:
        ns = -((self._carry - tokens * self._refill_ns) // self._size)
        return max(1, ns)

    def _refill(self, now_ns: int) -> None:
        passed = now_ns - self._last_ns
        if passed <= 0:
            return
        self._last_ns = now_ns
        tokens, self._carry = divmod(passed * self._size + self._carry, self._refill_ns)
        self.budget += tokens
        if self.budget >= self._size:
            self.budget, self._carry = self._size, 0


class RateLimiter:
    """Both buckets of one device. A request passes, or learns when to try again."""

    def __init__(self, limits: RateLimits, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """``limits`` were checked; ``clock_ns`` never goes back."""
        self._clock_ns = clock_ns
        self._waits = LimitWaits()
        self.configure(limits)

    def show_waits(self, waits: LimitWaits) -> None:
        """Let ``waits`` tell the vmm from now on which queues wait, and until when."""
        self._waits = waits
        waits.clear()

    def configure(self, limits: RateLimits) -> None:
        """Set other limits; their buckets are full."""
        now_ns = self._clock_ns()
        self.limits = limits
        self._bytes = _bucket(limits[:3], now_ns)
        self._ops = _bucket(limits[3:], now_ns)
        self._asked_bytes = 0
        self.retry_seconds = 0.0
        self._waits.clear()

    def drain(self) -> None:
        """Empty the buckets: an earlier process used them, and nobody knows how much."""
        for bucket in (self._bytes, self._ops):
            if bucket is not None:
                bucket.drain()

    @property
    def active(self) -> bool:
        """Whether anything is limited."""
        return self._bytes is not None or self._ops is not None

    def take(self, length_bytes: int, queue: int = 0) -> bool:
        """Return whether a request of ``queue`` passes; if not, set ``retry_seconds``."""
        now_ns = self._clock_ns()
        ops, of_bytes = self._ops, self._bytes
        if ops is not None:
            wait_ns = ops.take(1, now_ns)
            if wait_ns:
                return self._refuse(queue, now_ns, wait_ns, self.limits.ops_refill_time)
        if of_bytes is not None:
            wait_ns = of_bytes.take(length_bytes, now_ns)
            if wait_ns:
                if ops is not None:
                    ops.give_back(1)
                return self._refuse(queue, now_ns, wait_ns, self.limits.bw_refill_time)
        self._asked_bytes = length_bytes
        return True

    def settle(self, moved_bytes: int) -> None:
        """Charge the last request that passed for what it moved, not for what it asked for."""
        unused = self._asked_bytes - moved_bytes
        if unused and self._bytes is not None:
            if unused > 0:
                self._bytes.give_back(unused)
            else:
                self._bytes.charge(-unused, self._clock_ns())

    def give_back(self, length_bytes: int) -> None:
        """Take back the tokens of bytes that passed some time ago and were never moved."""
        if self._bytes is not None:
            self._bytes.give_back(length_bytes)

    def forget_waits(self) -> None:
        """Note that no queue waits any more: the driver has reset the device."""
        self._waits.clear()

    def _refuse(self, queue: int, now_ns: int, missing_ns: int, refill_ms: int) -> bool:
        self._waits.set(queue, now_ns + missing_ns)
        useful_ns = min(_LEAST_WAIT_NS, refill_ms * _NS_PER_MS // 2)
        self.retry_seconds = min(max(missing_ns, useful_ns), _MOST_WAIT_NS) / 1e9
        return False


def _bucket(limits: tuple[int, ...], now_ns: int) -> TokenBucket | None:
    size, burst, refill_ms = limits
    return TokenBucket(size, burst, refill_ms, now_ns) if size and refill_ms else None
