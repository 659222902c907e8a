# SPDX-License-Identifier: BSD-3-Clause
"""Devices of the common loop that are limited: what waits, for how long, and what changes that."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio import limited
from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import SetLink
from devices.virtio.counters import waiting_until
from devices.virtio.device import CommandError
from devices.virtio.rate_limiter import RateLimiter, RateLimits
from devices.virtio.rng.device import Rng, RngSpec
from sys_util.guest_memory import GuestMemory
from tests.support.commands import limits_of
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO_OPS = RateLimits(ops_size=2, ops_refill_time=1000)


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limited, "RateLimiter", lambda limits: RateLimiter(limits, clock))
    return clock


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 4 << 20)])
    yield memory
    memory.close()


def rng(memory: GuestMemory, limits: RateLimits) -> DriverSide:
    side = DriverSide(Rng(RngSpec(limits=limits)), memory)
    side.start()
    return side


def served(side: DriverSide) -> int:
    return len(side.queues[0].collect())


def let_pass(side: DriverSide, clock: Clock, seconds: float) -> None:
    clock.ns += round(seconds * 1e9)
    side.context.advance(seconds)
    if side.context.turns_wanted:
        side.context.turns_wanted = 0
        while side.worker.on_kick(0):
            pass


def test_device_without_limits_has_no_gate() -> None:
    assert Rng(RngSpec()).gate is None


def test_chains_beyond_the_limit_wait_in_the_queue(memory: GuestMemory, clock: Clock) -> None:
    side = rng(memory, TWO_OPS)
    for _ in range(5):
        side.queues[0].submit([], [8])
    side.kick(0)
    assert served(side) == 2
    assert side.interrupted(0)
    assert side.worker.on_kick(0) is False
    assert len(side.context.timers) == 1
    let_pass(side, clock, 0.5)
    assert served(side) == 1
    let_pass(side, clock, 1.0)
    assert served(side) == 2
    side.close()


def test_kicks_while_closed_serve_nothing_and_ask_for_nothing(
    memory: GuestMemory, clock: Clock
) -> None:
    side = rng(memory, TWO_OPS)
    for _ in range(4):
        side.queues[0].submit([], [8])
    for _ in range(10):
        side.kick(0)
    assert served(side) == 2
    assert len(side.context.timers) == 1
    side.close()


def test_refused_chain_counts_for_nothing(memory: GuestMemory, clock: Clock) -> None:
    side = rng(memory, TWO_OPS)
    for _ in range(3):
        side.queues[0].submit([], [8])
    side.kick(0)
    assert (side.worker.counters.requests, side.worker.counters.errors) == (2, 0)
    assert side.worker.states()[0].next_avail == 2
    side.close()


def test_malformed_chains_go_back_without_the_limiter(memory: GuestMemory, clock: Clock) -> None:
    side = rng(memory, RateLimits(ops_size=1, ops_refill_time=1000))
    side.queues[0].submit([], [8])
    side.queues[0].submit([b"readable"], [8])
    side.kick(0)
    assert served(side) == 1
    let_pass(side, clock, 1.0)
    assert served(side) == 1
    side.close()


def test_reset_while_closed_leaves_a_timer_that_harms_nothing(
    memory: GuestMemory, clock: Clock
) -> None:
    side = rng(memory, TWO_OPS)
    for _ in range(3):
        side.queues[0].submit([], [8])
    side.kick(0)
    side.reset()
    let_pass(side, clock, 5)
    side.start()
    side.queues[0].submit([], [8])
    side.kick(0)
    assert served(side) == 1
    side.close()


def test_rng_costs_what_it_fills(memory: GuestMemory, clock: Clock) -> None:
    limits = RateLimits(bw_size=100, bw_refill_time=1000)
    side = DriverSide(Rng(RngSpec(max_fill_bytes=10, limits=limits)), memory)
    side.start()
    for _ in range(12):
        side.queues[0].submit([], [4096])
    side.kick(0)
    assert served(side) == 10
    side.close()


def test_block_costs_its_data_and_nothing_else(memory: GuestMemory, clock: Clock) -> None:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.truncate(fd, 64 * 1024)
    spec = BlockSpec("image", limits=RateLimits(bw_size=1024, bw_refill_time=1000))
    side = DriverSide(Block(spec, fd), memory)
    side.start()
    read = struct.pack("<IIQ", 0, 0, 1)
    flush = struct.pack("<IIQ", 4, 0, 0)
    write = struct.pack("<IIQ", 1, 0, 1)
    side.queues[0].submit([read], [512, 1])
    side.queues[0].submit([flush], [1])
    side.queues[0].submit([write, bytes(512)], [1])
    side.queues[0].submit([flush], [1])
    side.queues[0].submit([read], [512, 1])
    side.kick(0)
    assert served(side) == 4
    let_pass(side, clock, 0.5)
    assert served(side) == 1
    os.close(fd)
    side.close()


class LimitedDisk:
    """A disk of 64 KiB that lets 1 KiB a second pass, and its driver."""

    def __init__(self, memory: GuestMemory, **limits: int) -> None:
        self.fd = os.memfd_create("image", os.MFD_CLOEXEC)
        os.truncate(self.fd, 64 * 1024)
        chosen = RateLimits(bw_size=1024, bw_refill_time=1000, **limits)
        self.side = DriverSide(Block(BlockSpec("image", limits=chosen), self.fd), memory)
        self.side.start()

    def ask(self, request_type: int, sector: int, into: list[int], *out: bytes) -> None:
        header = struct.pack("<IIQ", request_type, 0, sector)
        self.side.queues[0].submit([header, *out], into)

    def close(self) -> None:
        self.side.close()
        os.close(self.fd)


@pytest.fixture
def disk(memory: GuestMemory, clock: Clock) -> Iterator[LimitedDisk]:
    disk = LimitedDisk(memory)
    yield disk
    disk.close()


def test_request_that_is_refused_leaves_no_debt(disk: LimitedDisk, clock: Clock) -> None:
    disk.ask(0, 1 << 40, [256 * 1024, 1])
    disk.ask(1, 120, [1], bytes(256 * 1024))
    disk.ask(0, 0, [1024, 1])
    disk.ask(0, 0, [512, 1])
    disk.side.kick(0)
    assert [data[-1] for _, _, data in disk.side.queues[0].collect()] == [1, 1, 0]
    let_pass(disk.side, clock, 0.5)
    assert served(disk.side) == 1


def test_read_that_fails_midway_is_charged_for_what_it_read(
    disk: LimitedDisk, clock: Clock, lines: list[str]
) -> None:
    os.truncate(disk.fd, 512)
    disk.ask(0, 0, [4096, 1])
    disk.ask(0, 0, [512, 1])
    disk.ask(0, 0, [512, 1])
    disk.side.kick(0)
    assert served(disk.side) == 2
    let_pass(disk.side, clock, 0.5)
    assert served(disk.side) == 1


def test_request_that_is_refused_costs_an_operation(memory: GuestMemory, clock: Clock) -> None:
    disk = LimitedDisk(memory, ops_size=2, ops_refill_time=1000)
    for _ in range(3):
        disk.ask(0, 1 << 40, [512, 1])
    disk.side.kick(0)
    assert served(disk.side) == 2
    disk.close()


def test_zeros_that_had_to_be_stored_are_charged(
    disk: LimitedDisk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("disk.raw.fallocate", refuse)
    for _ in range(2):
        disk.ask(13, 0, [1], struct.pack("<QII", 0, 6, 0))
    disk.side.kick(0)
    assert served(disk.side) == 1
    let_pass(disk.side, clock, 1.9)
    assert served(disk.side) == 0
    let_pass(disk.side, clock, 0.2)
    assert served(disk.side) == 1


def test_reset_pays_no_debt_of_bytes_that_were_moved(disk: LimitedDisk, clock: Clock) -> None:
    disk.ask(0, 0, [4096, 1])
    disk.ask(0, 0, [512, 1])
    disk.side.kick(0)
    assert served(disk.side) == 1
    disk.side.reset()
    disk.side.start()
    disk.ask(0, 0, [512, 1])
    disk.side.kick(0)
    assert served(disk.side) == 0


def test_vmm_sees_which_queue_waits_and_until_when(disk: LimitedDisk, clock: Clock) -> None:
    cells = disk.side.context.counters.cells
    disk.ask(0, 0, [3072, 1])
    disk.side.kick(0)
    assert waiting_until(cells) == {}
    disk.ask(0, 0, [512, 1])
    disk.side.kick(0)
    assert waiting_until(cells) == {0: 2 * 10**9}
    disk.side.reset()
    assert waiting_until(cells) == {}


def test_limits_can_be_set_while_it_runs(memory: GuestMemory, clock: Clock) -> None:
    side = rng(memory, RateLimits())
    limits = limits_of(side.device, ops_size=1, ops_refill_time=1000)
    assert limits == RateLimits(ops_size=1, ops_refill_time=1000)
    for _ in range(3):
        side.queues[0].submit([], [8])
    side.kick(0)
    assert served(side) == 1
    side.close()


def test_lifted_limits_let_go_what_waits(memory: GuestMemory, clock: Clock) -> None:
    side = rng(memory, TWO_OPS)
    for _ in range(6):
        side.queues[0].submit([], [8])
    side.kick(0)
    assert served(side) == 2
    limits_of(side.device, ops_size=0)
    let_pass(side, clock, 0)
    assert served(side) == 4
    assert isinstance(side.device, Rng)
    assert side.device.gate is None
    side.close()


def test_question_for_the_limits_changes_nothing(memory: GuestMemory, clock: Clock) -> None:
    side = rng(memory, TWO_OPS)
    for _ in range(3):
        side.queues[0].submit([], [8])
    side.kick(0)
    assert limits_of(side.device) == TWO_OPS
    assert limits_of(side.device, ops_size=2) == TWO_OPS
    let_pass(side, clock, 0)
    assert served(side) == 2
    side.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param({"ops_size": -1}, "ops-size: -1 is not in 0", id="negative"),
        pytest.param({"bw_size": 1 << 63}, "bw-size: 9223372036854775808 is not", id="too-large"),
        pytest.param({"bw_one_time_burst": 1}, "without bw-size nothing", id="burst"),
    ],
)
def test_limit_that_makes_no_sense_is_refused_and_nothing_changes(
    memory: GuestMemory, clock: Clock, arguments: dict[str, int], reason: str
) -> None:
    side = rng(memory, TWO_OPS)
    with pytest.raises(CommandError, match=reason):
        limits_of(side.device, **arguments)
    assert limits_of(side.device) == TWO_OPS
    side.close()


def test_other_commands_are_unknown(memory: GuestMemory) -> None:
    with pytest.raises(CommandError, match="rng devices know no link"):
        Rng(RngSpec()).command(SetLink(up=True))
