# SPDX-License-Identifier: BSD-3-Clause
"""The card that hands its rings to the kernel, with a kernel that only notes it."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetLink
from devices.virtio.device import CommandError
from devices.virtio.net.kernel import KernelNet
from devices.virtio.net.state import NetSpec
from devices.virtio.queue.split_queue import QueueError
from sys_util.guest_memory import GuestMemory
from sys_util.tap import IFF_ATTACH_QUEUE, TUNSETOFFLOAD, TUNSETQUEUE
from sys_util.vhost import VhostRing
from tests.support.commands import limits_of
from tests.support.device_context import DriverSide
from tests.support.net_rig import EVENT_IDX, MAC, MRG_RXBUF, Ioctls
from tests.support.noting_vhost import NotingVhost

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION_1 = 1 << 32
RING_RESET = 1 << 40
MQ = 1 << 22
TAP_FDS = (901, 902)


class NotingVhostNet(NotingVhost):
    """Rings that may be set while no TAP is behind them."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.served = 0  # chains of each ring since it was started
        self.backends: dict[int, int] = {}

    def set_ring(self, ring: VhostRing, next_avail: int, memory: GuestMemory) -> None:
        assert self.backends.get(ring.number, -1) == -1
        super().set_ring(ring, next_avail, memory)

    def ring_base(self, number: int) -> int:
        assert self.backends[number] == -1
        return self.rings[number][1] + self.served

    def set_net_backend(self, number: int, tap_fd: int) -> None:
        self.backends[number] = tap_fd


class Scene:
    def __init__(self, ioctls: Ioctls, *, pairs: int = 1, kernel: int = MRG_RXBUF) -> None:
        self.ioctls = ioctls
        self.memory = GuestMemory.create([(0, 16 << 20)])
        offered = kernel | VERSION_1 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29
        self.vhosts = [NotingVhostNet(offered) for _ in range(pairs)]
        self.device = KernelNet(NetSpec(MAC, 1500, pairs), TAP_FDS[:pairs], self.vhosts)
        self.driver = DriverSide(self.device, self.memory, without=0)

    @property
    def backends(self) -> list[dict[int, int]]:
        return [vhost.backends for vhost in self.vhosts]

    def close(self) -> None:
        self.driver.close()


@pytest.fixture
def ioctls(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Ioctls:
    return Ioctls(monkeypatch)


@pytest.fixture
def scene(ioctls: Ioctls) -> Iterator[Scene]:
    scene = Scene(ioctls)
    scene.driver.start()
    yield scene
    scene.close()


@pytest.fixture
def scene_of_two(ioctls: Ioctls) -> Iterator[Scene]:
    scene = Scene(ioctls, pairs=2)
    scene.driver.start()
    yield scene
    scene.close()


def test_kernel_gets_rings_eventfds_and_the_tap(scene: Scene) -> None:
    (vhost,) = scene.vhosts
    assert vhost.owned == 1
    assert vhost.backends == {0: 901, 1: 901}
    rx = scene.driver.queues[0]
    assert vhost.rings[0] == (
        VhostRing(0, rx.size, rx.desc_table, rx.avail_ring, rx.used_ring),
        0,
    )
    for kick_fd, _, _ in vhost.eventfds.values():
        assert os.eventfd_read(kick_fd) > 0  # what came too early is repeated


def test_kernel_gets_the_features_that_it_knows_and_the_tap_the_offloads(scene: Scene) -> None:
    assert scene.vhosts[0].accepted == MRG_RXBUF | VERSION_1 | 1 << 28 | EVENT_IDX
    assert (TUNSETOFFLOAD, 0b1111) in scene.ioctls.calls


def test_features_merge_buffers_only_where_the_kernel_does(ioctls: Ioctls, scene: Scene) -> None:
    assert scene.device.features() & MRG_RXBUF
    assert Scene(ioctls, kernel=0).device.features() & MRG_RXBUF == 0


def test_control_queue_is_ours(scene: Scene) -> None:
    served = scene.driver.worker.positions()
    assert [served[at][0] for at in sorted(served)] == ["kernel", "kernel", "port"]
    driver = scene.driver.queues[2]
    driver.submit([b"\0\0\1"], [1])
    scene.driver.kick(2)
    assert [data for _, _, data in driver.collect()] == [b"\0"]


def test_pause_stops_the_kernel_and_resume_goes_on_where_it_was(scene: Scene) -> None:
    scene.vhosts[0].served = 5
    scene.driver.worker.pause()
    assert scene.vhosts[0].backends == {0: -1, 1: -1}
    scene.driver.worker.resume()
    assert scene.vhosts[0].backends == {0: 901, 1: 901}
    assert [base for _, base in scene.vhosts[0].rings.values()] == [5, 5]


def test_link_down_stops_the_kernel(scene: Scene) -> None:
    scene.device.command(SetLink(up=False))
    assert scene.vhosts[0].backends == {0: -1, 1: -1}
    scene.device.command(SetLink(up=True))
    assert scene.vhosts[0].backends == {0: 901, 1: 901}


def test_queue_reset_stops_one_ring_and_the_other_goes_on(scene: Scene) -> None:
    scene.driver.worker.stop_queue(1)
    assert scene.vhosts[0].backends == {0: 901, 1: -1}
    scene.driver.start_queue(1)
    assert scene.vhosts[0].backends == {0: 901, 1: 901}
    assert scene.vhosts[0].rings[1][1] == 0


def test_reset_takes_every_ring_back(scene: Scene) -> None:
    scene.driver.reset()
    assert scene.vhosts[0].backends == {0: -1, 1: -1}
    scene.driver.start()
    assert scene.vhosts[0].backends == {0: 901, 1: 901}


def test_second_pair_waits_for_the_driver(scene_of_two: Scene) -> None:
    scene = scene_of_two
    assert scene.backends == [{0: 901, 1: 901}, {}]
    driver = scene.driver.queues[4]
    driver.submit([b"\4\0" + struct.pack("<H", 2)], [1])
    scene.driver.kick(4)
    assert scene.backends == [{0: 901, 1: 901}, {0: 902, 1: 902}]
    assert (TUNSETQUEUE, struct.pack("=16xH22x", IFF_ATTACH_QUEUE)) in scene.ioctls.calls


def test_driver_without_multi_queue_has_its_control_queue_after_the_first_pair(
    ioctls: Ioctls,
) -> None:
    scene = Scene(ioctls, pairs=2)
    scene.driver.features &= ~MQ
    scene.driver.start(0, 1, 2)
    assert scene.driver.worker.positions()[2][0] == "port"
    assert scene.backends == [{0: 901, 1: 901}, {}]
    scene.close()


def test_kernel_that_cannot_go_on_needs_a_reset(scene: Scene) -> None:
    error_fd = scene.vhosts[0].eventfds[0][2]
    os.eventfd_write(error_fd, 1)
    with pytest.raises(QueueError, match="the host's kernel cannot go on"):
        scene.driver.context.fire(error_fd)
    assert scene.vhosts[0].backends == {0: -1, 1: -1}


def test_restart_hands_the_rings_on_where_they_stand(ioctls: Ioctls, scene_of_two: Scene) -> None:
    scene = scene_of_two
    control = scene.driver.queues[4]
    control.submit([b"\4\0" + struct.pack("<H", 2)], [1])
    scene.driver.kick(4)
    scene.memory.write(scene.driver.queues[1].used_ring + 2, struct.pack("<H", 7))
    ioctls.calls.clear()
    ioctls.attached = [True, True]
    vhosts = [NotingVhostNet(scene.vhosts[0].offered) for _ in range(2)]
    scene.driver.replace(KernelNet(NetSpec(MAC, 1500, 2), TAP_FDS, vhosts))
    assert [vhost.backends for vhost in vhosts] == [{0: 901, 1: 901}, {0: 902, 1: 902}]
    assert [base for _, base in vhosts[0].rings.values()] == [0, 7]
    assert TUNSETQUEUE not in [request for request, _ in ioctls.calls]
    assert all(scene.driver.interrupted(index) for index in range(4))


def test_limits_are_not_the_kernels(scene: Scene) -> None:
    with pytest.raises(CommandError, match="net devices know no limit"):
        limits_of(scene.device, ops_size=1)
