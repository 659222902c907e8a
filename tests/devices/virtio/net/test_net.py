# SPDX-License-Identifier: BSD-3-Clause
"""The card as a whole: configuration, link, pausing, reset, both kinds of host ends."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetLink, TellState
from devices.virtio.counters import named
from devices.virtio.device import CommandError
from devices.virtio.net.device import Net
from devices.virtio.net.ends import TapEnd
from devices.virtio.net.state import NetSpec
from devices.virtio.net.stats import NET_STATS
from sys_util.event_loop import EPOLLOUT
from sys_util.tap import IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, TUNSETOFFLOAD, TUNSETQUEUE
from tests.support.net_rig import EVENT_IDX, MAC, PLAIN, Ioctls, NetRig, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("lines", "server")

MQ = 1 << 22
GUEST_CSUM = 1 << 1
TSO4 = 1 << 7


@pytest.fixture
def ioctls(monkeypatch: pytest.MonkeyPatch) -> Ioctls:
    return Ioctls(monkeypatch)


@pytest.fixture
def make(ioctls: Ioctls) -> Iterator[Callable[..., NetRig]]:
    rigs = []

    def build(*, pairs: int = 1, tap: bool = True, without: int = EVENT_IDX) -> NetRig:
        rigs.append(NetRig(pairs=pairs, tap=tap, without=without))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make: Callable[..., NetRig]) -> NetRig:
    rig = make()
    rig.driver.start()
    return rig


def test_config_shows_what_was_asked_for(rig: NetRig) -> None:
    assert rig.config() == (MAC, 1, 1, 1500, 10_000, 1)
    assert rig.device.queue_sizes == (256, 256, 64)


def test_features_of_a_stream_have_no_offloads(make: Callable[..., NetRig]) -> None:
    tap, stream = make().device.features(), make(tap=False).device.features()
    assert tap & stream == stream
    assert tap & ~stream & (1 << 0 | 1 << 1 | 1 << 11 | 1 << 12) == 0x1803
    assert not tap & (MQ | 0b111 << 54)


def test_features_uso_and_multi_queue_are_offered_where_they_are() -> None:
    device = Net(NetSpec(MAC, 1500, pairs=2, uso=True), [-1, -1])
    assert device.features() & (MQ | 0b111 << 54) == MQ | 0b111 << 54
    assert device.queue_sizes == (256, 256, 256, 256, 64)


def test_activate_negotiated_offloads_go_to_the_tap(
    make: Callable[..., NetRig], ioctls: Ioctls
) -> None:
    make().driver.start()
    assert (TUNSETOFFLOAD, 0b1111) in ioctls.calls


@pytest.mark.parametrize(
    ("without", "offloads"),
    [
        pytest.param(GUEST_CSUM, 0, id="no checksums, no segments"),
        pytest.param(TSO4, 0b1101, id="one kind of segments"),
        pytest.param(TSO4 | 1 << 8, 0b0001, id="no ECN without segments"),
    ],
)
def test_activate_fewer_offloads(
    make: Callable[..., NetRig], ioctls: Ioctls, without: int, offloads: int
) -> None:
    make(without=EVENT_IDX | without).driver.start()
    assert ioctls.calls[-1] == (TUNSETOFFLOAD, offloads)


def test_link_down_stops_frames_both_ways_and_up_drops_what_piled_up(rig: NetRig) -> None:
    rig.offer(2000)
    rig.device.command(SetLink(up=False))
    assert rig.config()[1] == 0
    assert rig.driver.context.config_changes == 1
    assert not rig.listens()
    rig.send(PLAIN + frame(60))
    assert rig.sent() == []
    rig.host.send(PLAIN + frame(60))
    rig.device.command(SetLink(up=True))
    assert rig.config()[1] == 3  # and the driver shall announce itself
    assert rig.listens()
    rig.arrive(frame(60, 1))
    assert [data[12:] for data in rig.received()] == [frame(60, 1)]
    assert (rig.device.stats.rx_dropped, rig.device.stats.tx_dropped) == (1, 1)


def test_link_same_again_changes_nothing(rig: NetRig) -> None:
    rig.device.command(SetLink(up=True))
    assert rig.driver.context.config_changes == 0


def test_command_unknown_is_refused(rig: NetRig) -> None:
    with pytest.raises(CommandError, match="net devices know no balloon"):
        rig.device.command(TellState())


def test_stats_are_shown_to_the_vmm(rig: NetRig) -> None:
    rig.offer(2000)
    rig.arrive(frame(60))
    rig.send(PLAIN + frame(60))
    rig.send(b"short")
    shown = named(rig.driver.worker.counters.cells, NET_STATS)
    assert (shown["rx_frames"], shown["tx_frames"], shown["tx_malformed"]) == (1, 1, 1)


@pytest.mark.usefixtures("fake_calls")
def test_tap_deleted_is_a_cable_that_was_pulled(
    rig: NetRig, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    rig.offer(2000)

    def gone(_fd: int, _vectors: object) -> int:
        raise OSError(77, "File descriptor in bad state")

    monkeypatch.setattr(os, "readv", gone)
    monkeypatch.setattr(os, "writev", gone)
    rig.driver.context.fire(rig.end_fd)
    assert rig.config()[1] == 0
    assert not rig.listens()
    rig.send(PLAIN + frame(60))
    assert rig.driver.queues[1].collect()
    assert rig.driver.context.config_changes == 1
    assert lines == ["the TAP was deleted: the guest's link is down until this VM is started again"]


def test_pause_gives_every_chain_back_to_the_ring(rig: NetRig) -> None:
    rig.offer(2000, 2000)
    rig.driver.worker.pause()
    assert all(state.next_avail == state.next_used for state in rig.driver.worker.states().values())
    rig.driver.worker.resume()
    rig.driver.kick(0)
    rig.arrive(frame(100))
    assert [data[12:] for data in rig.received()] == [frame(100)]


def test_resume_asks_the_driver_to_announce_itself(rig: NetRig) -> None:
    rig.driver.worker.pause()
    rig.driver.worker.resume()
    assert rig.config()[1] == 3
    assert rig.command(3, 0) == 0
    assert rig.config()[1] == 1
    assert rig.driver.context.config_changes == 2


def test_pause_with_a_frame_that_waits_loses_nothing(rig: NetRig) -> None:
    sent = 0
    while EPOLLOUT & rig.driver.context.fds.get(rig.end_fd, (None, 0))[1] == 0:
        rig.send(PLAIN + frame(60, sent))
        rig.driver.queues[1].collect()
        sent += 1
    rig.driver.worker.pause()
    state = rig.driver.worker.states()[1]
    assert state.next_avail == state.next_used
    rig.driver.worker.resume()
    arrived = rig.sent()
    rig.driver.kick(1)
    arrived += rig.sent()
    assert arrived == [PLAIN + frame(60, seed) for seed in range(sent)]


def test_host_busy_is_asked_again_when_it_can_take_more(rig: NetRig) -> None:
    sent = 0
    while EPOLLOUT & rig.driver.context.fds.get(rig.end_fd, (None, 0))[1] == 0:
        rig.send(PLAIN + frame(60, sent))
        rig.driver.queues[1].collect()
        sent += 1
    arrived = rig.sent()
    rig.driver.context.fire(rig.end_fd, EPOLLOUT)
    arrived += rig.sent()
    assert arrived == [PLAIN + frame(60, seed) for seed in range(sent)]
    assert rig.driver.context.fds.get(rig.end_fd, (None, 0))[1] & EPOLLOUT == 0


def test_reset_forgets_the_driver_but_not_the_link(rig: NetRig) -> None:
    rig.command(1, 1, bytes.fromhex("525400abcdef"))
    rig.device.command(SetLink(up=False))
    changes = rig.driver.context.config_changes
    rig.driver.reset()
    assert rig.config()[:2] == (MAC, 0)
    assert rig.driver.context.config_changes == changes  # its process sees it
    rig.device.command(SetLink(up=True))
    rig.driver.start()
    rig.offer(2000)
    rig.arrive(frame(80))
    assert [data[12:] for data in rig.received()] == [frame(80)]


def test_multi_queue_starts_with_one_pair_and_grows(
    make: Callable[..., NetRig], ioctls: Ioctls
) -> None:
    rig = make(pairs=3)
    rig.driver.start()
    detach, attach = (
        (TUNSETQUEUE, struct.pack("=16xH22x", flag))
        for flag in (IFF_DETACH_QUEUE, IFF_ATTACH_QUEUE)
    )
    assert ioctls.calls.count(detach) == 2
    rig.offer(2000, queue=2)
    assert rig.device.ends[1].fd not in rig.driver.context.fds
    assert rig.command(4, 0, struct.pack("<H", 2), queue=6) == 0
    assert ioctls.calls.count(attach) == 1
    rig.hosts[1].send(PLAIN + frame(70))
    rig.driver.context.fire(rig.device.ends[1].fd)
    assert [data[12:] for data in rig.received(2)] == [frame(70)]


@pytest.mark.parametrize("pairs", [0, 4, 0x8000])
def test_multi_queue_wrong_number_is_refused(make: Callable[..., NetRig], pairs: int) -> None:
    rig = make(pairs=3)
    rig.driver.start()
    assert rig.command(4, 0, struct.pack("<H", pairs), queue=6) == 1


def test_control_queue_without_multi_queue_follows_the_first_pair(
    make: Callable[..., NetRig],
) -> None:
    rig = make(pairs=3, without=EVENT_IDX | MQ)
    rig.driver.start(0, 1, 2)
    assert rig.command(0, 0, b"\1") == 0


def test_ends_pin_the_abi() -> None:
    assert (TUNSETOFFLOAD, TUNSETQUEUE) == (0x400454D0, 0x400454D9)
    assert TapEnd.unsent is False
