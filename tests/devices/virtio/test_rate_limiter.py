# SPDX-License-Identifier: BSD-3-Clause
"""Buckets, bursts, debts and waits, with a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio.counters import LimitWaits, waiting_until
from devices.virtio.rate_limiter import (
    LIMIT_NAMES,
    MAX_REFILL_MS,
    MAX_TOKENS,
    RateLimiter,
    RateLimits,
    TokenBucket,
)
from sys_util.errors import ConfigError

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.ns = 10**15

    def __call__(self) -> int:
        return self.ns

    def pass_ms(self, milliseconds: float) -> None:
        self.ns += round(milliseconds * MS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def served_in(limiter: RateLimiter, clock: Clock, length: int, seconds: float) -> int:
    """Return how many requests pass when each refused one comes again when it was told to."""
    end = clock.ns + round(seconds * 1e9)
    count = 0
    while clock.ns < end:
        if limiter.take(length):
            count += 1
            clock.ns += 1000
        else:
            assert limiter.retry_seconds > 0
            clock.ns += round(limiter.retry_seconds * 1e9)
    return count


def test_without_limits_everything_passes(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(), clock)
    assert not limiter.active
    assert all(limiter.take(1 << 40) for _ in range(100))


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(RateLimits(bw_size=1), id="bytes-without-time"),
        pytest.param(RateLimits(bw_refill_time=1), id="bytes-without-size"),
        pytest.param(RateLimits(ops_size=1), id="ops-without-time"),
        pytest.param(RateLimits(ops_refill_time=1), id="ops-without-size"),
    ],
)
def test_size_or_time_of_zero_limits_nothing(clock: Clock, limits: RateLimits) -> None:
    limits.check()
    assert not RateLimiter(limits, clock).active


def test_full_bucket_passes_and_then_refuses(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    assert limiter.take(600)
    assert limiter.take(400)
    assert not limiter.take(1)


def test_refill_is_even(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    limiter.take(1000)
    clock.pass_ms(10)
    assert not limiter.take(101)
    assert limiter.take(100)
    clock.pass_ms(1000)
    assert limiter.take(1000)
    assert not limiter.take(1)


def test_refused_request_passes_after_its_wait(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    limiter.take(1000)
    assert not limiter.take(700)
    assert limiter.retry_seconds == pytest.approx(0.07)
    clock.ns += round(limiter.retry_seconds * 1e9)
    assert limiter.take(700)


def test_wait_for_little_is_long_enough_to_be_worth_a_turn(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(ops_size=1000, ops_refill_time=100), clock)
    assert all(limiter.take(0) for _ in range(1000))
    assert not limiter.take(0)
    assert limiter.retry_seconds == pytest.approx(0.005)


def test_wait_never_lets_a_small_bucket_overflow(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(ops_size=1000, ops_refill_time=2), clock)
    assert all(limiter.take(0) for _ in range(1000))
    assert not limiter.take(0)
    assert limiter.retry_seconds == pytest.approx(0.001)


def test_burst_is_used_first_and_only_once(clock: Clock) -> None:
    limits = RateLimits(bw_size=100, bw_one_time_burst=1000, bw_refill_time=100)
    limiter = RateLimiter(limits, clock)
    assert limiter.take(1000)
    assert limiter.take(100)
    assert not limiter.take(1)
    clock.pass_ms(100_000)
    assert limiter.take(100)
    assert not limiter.take(1)


def test_time_during_the_burst_refills_nothing(clock: Clock) -> None:
    limits = RateLimits(bw_size=100, bw_one_time_burst=150, bw_refill_time=100)
    limiter = RateLimiter(limits, clock)
    assert limiter.take(100)
    clock.pass_ms(50)
    assert limiter.take(50)
    assert limiter.take(100)
    assert not limiter.take(1)


def test_request_may_use_the_rest_of_the_burst_and_the_bucket(clock: Clock) -> None:
    limits = RateLimits(bw_size=100, bw_one_time_burst=30, bw_refill_time=100)
    limiter = RateLimiter(limits, clock)
    assert limiter.take(130)
    assert not limiter.take(1)


def test_request_larger_than_the_bucket_passes_and_blocks_for_its_share(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    assert limiter.take(3500)
    assert not limiter.take(0)
    assert limiter.retry_seconds == pytest.approx(0.25)
    clock.pass_ms(249)
    assert not limiter.take(0)
    clock.pass_ms(1)
    assert limiter.take(0)
    assert not limiter.take(1)


def test_request_larger_than_the_bucket_passes_an_empty_one_too(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    limiter.take(1000)
    assert limiter.take(2000)
    assert not limiter.take(0)
    assert limiter.retry_seconds == pytest.approx(0.2)


def test_operations_are_counted_whatever_their_length(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(ops_size=2, ops_refill_time=1000), clock)
    assert limiter.take(0)
    assert limiter.take(1 << 30)
    assert not limiter.take(0)
    clock.pass_ms(500)
    assert limiter.take(0)


def test_bytes_that_are_missing_give_the_operation_back(clock: Clock) -> None:
    limits = RateLimits(bw_size=100, bw_refill_time=10, ops_size=2, ops_refill_time=1_000_000)
    limiter = RateLimiter(limits, clock)
    assert limiter.take(100)
    for _ in range(5):
        assert not limiter.take(100)
    clock.pass_ms(10)
    assert limiter.take(100)
    assert not limiter.take(0)


def test_operation_of_the_burst_is_given_back_to_the_burst() -> None:
    bucket = TokenBucket(5, 1, 1000, 0)
    bucket.take(1, 0)
    bucket.give_back(1)
    assert bucket.tokens == 6


def test_configure_fills_the_buckets(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=10, bw_refill_time=1000), clock)
    limiter.take(100)
    limiter.configure(RateLimits(bw_size=20, bw_refill_time=1000))
    assert limiter.take(20)
    limiter.configure(RateLimits())
    assert limiter.take(1 << 60)


def test_clock_that_stands_still_refills_nothing() -> None:
    bucket = TokenBucket(10, 0, 1000, 5)
    bucket.take(10, 5)
    assert bucket.take(1, 5) > 0
    assert bucket.take(1, 4) > 0


@pytest.mark.parametrize(
    ("limits", "length", "expected"),
    [
        pytest.param(RateLimits(1 << 20, 0, 100), 4096, 2560, id="bytes-small"),
        pytest.param(RateLimits(1 << 20, 0, 100), 3 << 20, 3.33, id="bytes-large"),
        pytest.param(RateLimits(1 << 20, 0, 100), (1 << 20) + 512, 10, id="bytes-just-too-large"),
        pytest.param(RateLimits(0, 0, 0, 100, 0, 100), 4096, 1000, id="ops"),
        pytest.param(RateLimits(0, 0, 0, 1, 0, 1), 4096, 1000, id="ops-one-by-one"),
        pytest.param(RateLimits(0, 0, 0, 10, 0, 1), 0, 10_000, id="ops-short-time"),
        pytest.param(RateLimits(10 << 20, 0, 100, 50, 0, 100), 4096, 500, id="both"),
    ],
)
def test_rate_over_twenty_seconds_is_what_was_set(
    clock: Clock, limits: RateLimits, length: int, expected: float
) -> None:
    limiter = RateLimiter(limits, clock)
    assert served_in(limiter, clock, length, 20) / 20 == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", LIMIT_NAMES)
@pytest.mark.parametrize("value", [-1, -(1 << 70), 1 << 63, 1 << 64])
def test_value_outside_its_range_is_refused(name: str, value: int) -> None:
    limits = RateLimits(bw_size=1, ops_size=1)._replace(**{name: value})
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')}: {value} is not in 0"):
        limits.check()


@pytest.mark.parametrize("kind", ["bw", "ops"])
def test_burst_without_a_bucket_is_refused(kind: str) -> None:
    limits = RateLimits()._replace(**{f"{kind}_one_time_burst": 1})
    with pytest.raises(ConfigError, match=f"{kind}-one-time-burst: without {kind}-size"):
        limits.check()


def test_greatest_values_work(clock: Clock) -> None:
    limits = RateLimits(*(MAX_TOKENS, MAX_TOKENS, MAX_REFILL_MS) * 2)
    limits.check()
    limiter = RateLimiter(limits, clock)
    assert limiter.take(1 << 64)
    assert not limiter.take(1)
    assert limiter.retry_seconds > 0


def test_longest_wait_is_one_that_the_loop_can_wait(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1, bw_refill_time=MAX_REFILL_MS), clock)
    assert limiter.take(1 << 32)
    assert not limiter.take(1)
    assert limiter.retry_seconds == 3600


@given(
    size=st.integers(1, 1000),
    burst=st.integers(0, 1000),
    refill_ms=st.integers(1, 50),
    steps=st.lists(
        st.tuples(st.integers(0, 1200), st.integers(0, 2000), st.integers(0, 20 * MS)), max_size=60
    ),
)
def test_no_schedule_moves_more_than_bucket_burst_and_time_allow(
    size: int, burst: int, refill_ms: int, steps: list[tuple[int, int, int]]
) -> None:
    """Each step claims tokens, moves as many, fewer or more, and lets time pass."""
    now = start = 7
    bucket = TokenBucket(size, burst, refill_ms, start)
    moved = 0
    for claimed, used, passed in steps:
        now += passed
        before = bucket.tokens
        if bucket.take(claimed, now):
            assert bucket.tokens >= before
            continue
        if used <= claimed:
            bucket.give_back(claimed - used)
        else:
            bucket.charge(used - claimed, now)
        moved += used
        paid_at = now + bucket.debt_ns(now)
        assert moved <= size + burst + (paid_at - start) * size / (refill_ms * MS) + 1


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 20), st.integers(0, 1 << 41))
def test_wait_that_was_told_is_enough(size: int, refill_ms: int, tokens: int) -> None:
    bucket = TokenBucket(size, 0, refill_ms, 0)
    bucket.take(size, 0)
    wait = bucket.take(tokens, 0)
    if wait:
        assert bucket.take(tokens, wait) == 0


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 20), st.integers(1, 1 << 41))
def test_debt_is_paid_when_it_was_said_to_be(size: int, refill_ms: int, tokens: int) -> None:
    bucket = TokenBucket(size, 0, refill_ms, 0)
    bucket.charge(size + tokens, 0)
    wait = bucket.debt_ns(0)
    assert bucket.take(0, wait - 1) > 0
    assert bucket.take(0, wait) == 0


def test_claim_that_moved_nothing_leaves_no_debt(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    assert limiter.take(1 << 32)
    limiter.settle(0)
    assert limiter.take(1000)
    assert not limiter.take(1)
    assert limiter.retry_seconds < 0.1


def test_claim_that_moved_less_is_charged_for_that(clock: Clock) -> None:
    limits = RateLimits(bw_size=1000, bw_one_time_burst=500, bw_refill_time=100)
    limiter = RateLimiter(limits, clock)
    assert limiter.take(1200)
    limiter.settle(300)
    assert limiter.take(1200)
    limiter.settle(1200)
    assert not limiter.take(1)


def test_request_that_moved_more_than_it_claimed_leaves_a_debt(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    assert limiter.take(16)
    limiter.settle(3000)
    assert not limiter.take(0)
    assert limiter.retry_seconds == pytest.approx(0.2)


def test_refused_request_costs_an_operation(clock: Clock) -> None:
    limits = RateLimits(bw_size=10, bw_refill_time=100, ops_size=2, ops_refill_time=1000)
    limiter = RateLimiter(limits, clock)
    for _ in range(2):
        assert limiter.take(1 << 32)
        limiter.settle(0)
    assert not limiter.take(0)


def test_queue_that_waits_is_shown_with_the_end_of_its_wait(clock: Clock) -> None:
    cells = memoryview(bytearray(8 * 32)).cast("Q")
    limiter = RateLimiter(RateLimits(bw_size=1000, bw_refill_time=100), clock)
    limiter.show_waits(LimitWaits(cells, 1))
    assert waiting_until(cells) == {}
    assert limiter.take(3000, 5)
    assert not limiter.take(0, 5)
    assert not limiter.take(0, 63)
    assert waiting_until(cells) == {5: clock.ns + 200 * MS, 63: clock.ns + 200 * MS}
    limiter.forget_waits()
    assert waiting_until(cells) == {}


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=24))
def test_whatever_the_cells_hold_can_be_read(values: list[int]) -> None:
    until = waiting_until(values)
    assert all(0 <= queue < 64 for queue in until)
