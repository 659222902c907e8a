# SPDX-License-Identifier: BSD-3-Clause
"""Rate limits on the command line, of disks and of the entropy device."""

from __future__ import annotations

import pytest

from crosvm_py.cli.run_options.limits import given_limits
from devices.virtio.rate_limiter import RateLimits
from devices.virtio.rng.device import RngSpec
from sys_util.errors import ConfigError, UsageError
from tests.support.command_line import config_of


def test_every_limit_of_a_disk_reaches_its_field() -> None:
    text = (
        "disk.img,bw-size=1m,bw-one-time-burst=2m,bw_refill_time=100,"
        "ops-size=1000,ops_one_time_burst=50,ops-refill-time=200"
    )
    made = config_of("--block", text, "vmlinux")
    assert made.disks[0].limits == RateLimits(1 << 20, 2 << 20, 100, 1000, 50, 200)


def test_old_spellings_of_disks_take_limits_too() -> None:
    made = config_of("--rwdisk", "disk.img,ops-size=5,ops-refill-time=1", "vmlinux")
    assert made.disks[0].limits == RateLimits(ops_size=5, ops_refill_time=1)


def test_rng_is_there_with_limits_without_and_not_at_all() -> None:
    limited = RngSpec(limits=RateLimits(bw_size=1024, bw_refill_time=1000))
    assert config_of("--rng", "bw-size=1k,bw-refill-time=1000", "vmlinux").rng == limited
    assert config_of("vmlinux").rng == RngSpec()
    assert config_of("--no-rng", "vmlinux").rng is None


def test_rng_wanted_and_not_wanted_is_refused() -> None:
    with pytest.raises(ConfigError, match="--rng and --no-rng exclude each other"):
        config_of("--rng", "ops-size=1,ops-refill-time=1", "--no-rng", "vmlinux")


def test_packed_queue_is_accepted_when_it_is_false() -> None:
    assert config_of("--block", "d,packed-queue=false", "v") == config_of("--block", "d", "v")


@pytest.mark.parametrize("text", ["d,packed-queue", "d,packed-queue=true", "d,packed_queue=true"])
def test_packed_queue_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--block: packed-queue=true: there are only split"):
        config_of("--block", text, "vmlinux")


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        pytest.param("bw-size=1", ConfigError, "bw-size needs bw-refill-time", id="bytes"),
        pytest.param("bw-refill-time=1", ConfigError, "time needs bw-size", id="bytes-time"),
        pytest.param("ops-size=1", ConfigError, "ops-size needs ops-refill-time", id="ops"),
        pytest.param("ops-refill-time=1", ConfigError, "time needs ops-size", id="ops-time"),
        pytest.param("ops-one-time-burst=1", ConfigError, "without ops-size", id="burst"),
        pytest.param("bw-size=-1,bw-refill-time=1", UsageError, "not a number", id="negative"),
        pytest.param("bw-size=,bw-refill-time=1", UsageError, "a value is missing", id="empty"),
        pytest.param("ops-size=many,ops-refill-time=1", UsageError, "not a number", id="word"),
        pytest.param("ops-size=1.5,ops-refill-time=1", UsageError, "not a number", id="fraction"),
        pytest.param(
            f"ops-size={1 << 63},ops-refill-time=1", ConfigError, "is not in 0", id="63-bits"
        ),
        pytest.param(
            f"ops-size={1 << 64},ops-refill-time=1", UsageError, "above the limit", id="64-bits"
        ),
        pytest.param("bw-size=16e,bw-refill-time=1", UsageError, "64 bits", id="suffix"),
        pytest.param("bw-size=8e,bw-refill-time=1", ConfigError, "is not in 0", id="8-exbibytes"),
        pytest.param(
            "bw-size=1,bw-refill-time=31536000001", ConfigError, "refill-time: .* not in", id="time"
        ),
        pytest.param("bw-size=1,bw-size=2", UsageError, "given twice", id="twice"),
        pytest.param("speed=1", UsageError, "unknown key 'speed'", id="unknown"),
    ],
)
@pytest.mark.parametrize(("option", "before"), [("--rng", ""), ("--block", "d,")])
def test_limit_that_makes_no_sense_is_refused(
    option: str, before: str, text: str, kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=f"{option}: .*{reason}"):
        config_of(option, before + text, "vmlinux")


def test_zero_disables() -> None:
    made = config_of("--rng", "bw-size=0,bw-refill-time=0,ops-size=0,ops-refill-time=5", "vmlinux")
    assert made.rng == RngSpec(limits=RateLimits(ops_refill_time=5))


def test_changes_name_only_what_is_given() -> None:
    assert given_limits("limit", "ops-size=0,bw-size=1k") == (1024, None, None, 0, None, None)
