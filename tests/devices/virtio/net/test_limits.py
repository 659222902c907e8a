# SPDX-License-Identifier: BSD-3-Clause
"""Rate limits of a card: each direction has its own buckets, whatever the other one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetLink
from devices.virtio.counters import waiting_until
from devices.virtio.device import CommandError
from devices.virtio.rate_limiter import RateLimits
from sys_util.event_loop import EPOLLOUT
from tests.support.commands import limits_of
from tests.support.net_rig import PLAIN, Ioctls, NetRig, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUR_MS = 3_600_000
# Buckets that no test sees refilled.
TWO_FRAMES = RateLimits(ops_size=2, ops_refill_time=HOUR_MS)
TWO_HUNDRED_BYTES = RateLimits(bw_size=200, bw_refill_time=HOUR_MS)


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(params=[TWO_FRAMES, TWO_HUNDRED_BYTES], ids=["ops", "bytes"])
def rig(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> Iterator[NetRig]:
    Ioctls(monkeypatch)
    rig = NetRig(limits=request.param)
    rig.driver.start()
    yield rig
    rig.close()


def lift(rig: NetRig) -> RateLimits:
    """Let everything pass, and every queue have the turn that the device asks for."""
    answer = limits_of(rig.device, ops_size=0, bw_size=0)
    rig.driver.kick(0)
    rig.driver.kick(1)
    return answer


def test_send_beyond_the_limit_waits_in_its_queue(rig: NetRig) -> None:
    for seed in range(4):
        rig.driver.queues[1].submit([PLAIN + frame(100, seed)])
    rig.driver.kick(1)
    assert rig.sent() == [PLAIN + frame(100, seed) for seed in range(2)]
    assert len(rig.driver.queues[1].collect()) == 2
    rig.driver.kick(1)
    assert rig.sent() == []
    lift(rig)
    assert rig.sent() == [PLAIN + frame(100, seed) for seed in (2, 3)]


def test_send_beyond_the_limit_waits_for_a_timer_and_not_for_the_host(rig: NetRig) -> None:
    for _ in range(3):
        rig.driver.queues[1].submit([PLAIN + frame(100)])
    rig.driver.kick(1)
    rig.driver.kick(1)
    assert len(rig.driver.context.timers) == 1
    assert rig.driver.context.fds.get(rig.end_fd, (None, 0))[1] & EPOLLOUT == 0


def test_frames_that_go_nowhere_cost_operations_and_no_bytes(rig: NetRig) -> None:
    rig.device.command(SetLink(up=False))
    for _ in range(4):
        rig.driver.queues[1].submit([PLAIN + frame(100)])
    rig.driver.kick(1)
    limited_by_ops = bool(limits_of(rig.device).ops_size)
    assert len(rig.driver.queues[1].collect()) == (2 if limited_by_ops else 4)
    assert rig.sent() == []


def test_frames_that_are_refused_cost_operations_and_no_bytes(rig: NetRig) -> None:
    for _ in range(4):
        rig.driver.queues[1].submit([b"\xff" * 12 + frame(100)])
    rig.driver.kick(1)
    limited_by_ops = bool(limits_of(rig.device).ops_size)
    refused = 2 if limited_by_ops else 4
    assert len(rig.driver.queues[1].collect()) == rig.device.stats.tx_malformed == refused
    lift(rig)
    assert rig.device.stats.tx_malformed == 4
    assert rig.sent() == []


def test_vmm_sees_which_queue_waits(rig: NetRig) -> None:
    cells = rig.driver.context.counters.cells
    for _ in range(3):
        rig.driver.queues[1].submit([PLAIN + frame(100)])
    rig.driver.kick(1)
    assert list(waiting_until(cells)) == [1]
    rig.offer(*[500] * 4)
    for seed in range(4):
        rig.host.send(PLAIN + frame(100, seed))
    rig.driver.context.fire(rig.end_fd)
    assert sorted(waiting_until(cells)) == [0, 1]
    lift(rig)
    assert waiting_until(cells) == {}


def test_send_held_back_and_a_pause_loses_nothing(rig: NetRig) -> None:
    for seed in range(3):
        rig.driver.queues[1].submit([PLAIN + frame(100, seed)])
    rig.driver.kick(1)
    rig.driver.worker.pause()
    state = rig.driver.worker.states()[1]
    assert state.next_avail == state.next_used == 2
    rig.driver.worker.resume()
    lift(rig)
    assert rig.sent() == [PLAIN + frame(100, seed) for seed in range(3)]


def test_receive_beyond_the_limit_stays_in_the_host(rig: NetRig) -> None:
    rig.offer(*[500] * 8)
    for seed in range(6):
        rig.host.send(PLAIN + frame(100, seed))
    rig.driver.context.fire(rig.end_fd)
    # A frame is paid for when its length is known; so one more comes than is paid.
    assert [data[12:] for data in rig.received()] == [frame(100, seed) for seed in range(3)]
    assert not rig.listens()
    rig.offer(500)
    assert rig.received() == []
    lift(rig)
    assert [data[12:] for data in rig.received()] == [frame(100, seed) for seed in range(3, 6)]
    assert rig.listens()


def test_timer_asks_for_a_turn_of_every_queue(rig: NetRig) -> None:
    for _ in range(3):
        rig.driver.queues[1].submit([PLAIN + frame(100)])
    rig.driver.kick(1)
    (timer,) = rig.driver.context.timers
    before = rig.driver.context.turns_wanted
    rig.driver.context.advance(timer.deadline + 1)
    assert rig.driver.context.turns_wanted == before + 1


def test_directions_have_buckets_of_their_own(rig: NetRig) -> None:
    rig.offer(500, 500)
    for seed in range(2):
        rig.send(PLAIN + frame(100, seed))
        rig.arrive(frame(100, seed))
    assert len(rig.sent()) == len(rig.received()) == 2


def test_limit_answers_with_all_of_them(rig: NetRig) -> None:
    answer = limits_of(rig.device, bw_size=1000, bw_refill_time=10)
    assert answer.bw_size == 1000
    assert limits_of(rig.device) == answer
    assert lift(rig).bw_refill_time == 10


def test_limit_without_sense_is_refused(rig: NetRig) -> None:
    with pytest.raises(CommandError, match="bw-size: -1 is not in"):
        limits_of(rig.device, bw_size=-1)
