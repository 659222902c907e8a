# SPDX-License-Identifier: BSD-3-Clause
"""Frames that are longer than the driver's buffers: they are dropped, and change nothing else."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetLink
from devices.virtio.device import CommandError
from tests.support.net_rig import EVENT_IDX, MRG_RXBUF, PLAIN, Ioctls, NetRig, frame

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def _ioctls(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    Ioctls(monkeypatch)


def started(without: int) -> Iterator[NetRig]:
    rig = NetRig(without=EVENT_IDX | without)
    rig.driver.start(size=64)
    yield rig
    rig.close()


@pytest.fixture
def rig() -> Iterator[NetRig]:
    yield from started(0)


@pytest.fixture
def plain_rig() -> Iterator[NetRig]:
    """A driver without mergeable buffers."""
    yield from started(MRG_RXBUF)


def num_buffers(data: bytes) -> int:
    return int.from_bytes(data[10:12], "little")


def test_receive_without_merging_never_cuts_a_frame(plain_rig: NetRig) -> None:
    plain_rig.offer(*[1526] * 20)
    for seed in range(6):
        plain_rig.arrive(frame(4000, seed))
        plain_rig.arrive(frame(1514, seed))
    received = plain_rig.received()
    assert [data[12:] for data in received] == [frame(1514, seed) for seed in range(6)]
    assert [num_buffers(data) for data in received] == [1] * 6
    assert plain_rig.device.stats.rx_dropped == 6


def test_receive_without_merging_holds_one_chain_after_drops(plain_rig: NetRig) -> None:
    plain_rig.offer(*[1526] * 20)
    for _ in range(6):
        plain_rig.arrive(frame(65550))
    state = plain_rig.driver.worker.states()[0]
    assert (state.next_avail, state.next_used) == (1, 0)


def test_receive_without_merging_into_very_many_descriptors(plain_rig: NetRig) -> None:
    plain_rig.driver.queues[0].submit([], [1] * 1000 + [100] * 24, indirect=True)
    plain_rig.offer(2000)
    plain_rig.arrive(frame(3389))
    plain_rig.arrive(frame(3388))
    plain_rig.arrive(frame(60, 1))
    received = plain_rig.received()
    assert [data[12:] for data in received] == [frame(3388), frame(60, 1)]
    assert num_buffers(received[0]) == 1


def test_receive_frame_that_no_buffers_come_for_is_dropped(
    rig: NetRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.offer(100, 100)
    rig.arrive(frame(500))
    assert len(rig.driver.context.timers) == 1
    monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
    rig.driver.kick(0)
    assert rig.device.stats.rx_dropped == 1
    assert rig.listens()
    rig.arrive(frame(50, 1))
    assert [data[12:] for data in rig.received()] == [frame(50, 1)]
    assert rig.device.stats.rx_frames == 1


def test_receive_link_that_comes_back_drops_half_a_frame(rig: NetRig) -> None:
    rig.offer(100)
    rig.arrive(frame(500))
    rig.device.command(SetLink(up=False))
    rig.host.send(PLAIN + frame(300, 1))
    rig.device.command(SetLink(up=True))
    rig.offer(*[100] * 6)
    rig.arrive(frame(400, 2))
    received = rig.received()
    assert b"".join(received)[12:] == frame(400, 2)
    assert rig.device.stats.rx_dropped == 2


@pytest.mark.usefixtures("fake_calls")
def test_receive_frame_that_the_host_does_not_give_costs_only_that(
    rig: NetRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = os.readv, [22]

    def readv(fd: int, vectors: list[memoryview]) -> int:
        if answers:
            raise OSError(answers.pop(), "Invalid argument")
        return real(fd, vectors)

    monkeypatch.setattr(os, "readv", readv)
    rig.offer(2000)
    rig.arrive(frame(60))
    assert [data[12:] for data in rig.received()] == [frame(60)]
    assert rig.config()[1] == 1
    assert rig.device.stats.rx_dropped == 1
    rig.device.command(SetLink(up=False))
    rig.host.send(PLAIN + frame(60))
    answers.append(22)
    rig.device.command(SetLink(up=True))
    assert rig.device.stats.rx_dropped == 3


def test_link_of_a_network_that_is_gone_does_not_come_up(lines: list[str]) -> None:
    rig = NetRig(tap=False)
    rig.driver.start()
    rig.device.command(SetLink(up=False))
    rig.host.close()
    for _ in range(2):  # learnt now, known before
        with pytest.raises(CommandError, match="network behind the card is gone"):
            rig.device.command(SetLink(up=True))
        assert rig.config()[1] == 0
    rig.driver.reset()
    rig.driver.start()
    assert rig.config()[1] == 0
    assert "passt has ended: the guest's link is down until this VM is started again" in lines
    rig.close()


def test_link_that_goes_down_lets_go_of_a_frame_that_waits(rig: NetRig) -> None:
    while not rig.driver.worker.states()[1].next_avail - rig.driver.worker.states()[1].next_used:
        rig.send(PLAIN + frame(60))
        rig.driver.queues[1].collect()
    turns = rig.driver.context.turns_wanted
    rig.device.command(SetLink(up=False))
    assert rig.driver.context.turns_wanted > turns
    rig.driver.kick(1)
    assert len(rig.driver.queues[1].collect()) == 1
    assert rig.device.stats.tx_dropped == 1
