# SPDX-License-Identifier: BSD-3-Clause
"""The vsock device that hands its rings to the kernel, with a kernel that only notes it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from devices.virtio.queue.split_queue import QueueError
from devices.virtio.vsock.common import PATIENCE_SECONDS, VsockSpec
from devices.virtio.vsock.kernel import KernelVsock
from sys_util.errors import HostError
from sys_util.guest_memory import GuestMemory
from sys_util.vhost import VhostRing
from tests.support.device_context import DriverSide
from tests.support.noting_vhost import NotingVhost
from tests.support.vsock_rig import CID, EVENT, RX, TX

SEQPACKET = 1 << 1
VERSION_1 = 1 << 32
RING_RESET = 1 << 40


class NotingVhostVsock(NotingVhost):
    """Rings that may be set while it does not run."""

    def __init__(self, features: int = SEQPACKET | VERSION_1 | 1 << 28 | 1 << 29 | 1 << 26) -> None:
        super().__init__(features)
        self.cid = 0
        self.running = False
        self.starts = 0
        self.bases = {RX: 0, TX: 0}

    def set_ring(self, ring: VhostRing, next_avail: int, memory: GuestMemory) -> None:
        assert not self.running
        super().set_ring(ring, next_avail, memory)

    def ring_base(self, number: int) -> int:
        assert not self.running
        return self.bases[number]

    def set_guest_cid(self, cid: int) -> None:
        self.cid = cid

    def set_vsock_running(self, *, running: bool) -> None:
        self.running = running
        self.starts += running


class Scene:
    def __init__(self) -> None:
        self.memory = GuestMemory.create([(0, 4 << 20)])
        self.vhost = NotingVhostVsock()
        self.device = KernelVsock(VsockSpec(CID), self.vhost)
        self.driver = DriverSide(self.device, self.memory, without=0)

    def runs(self) -> bool:
        return self.vhost.running


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.driver.close()
    scene.memory.close()


def test_config_and_features(scene: Scene) -> None:
    assert scene.device.config() == CID.to_bytes(8, "little")
    assert scene.device.features() == SEQPACKET
    assert (scene.vhost.owned, scene.vhost.cid) == (1, CID)
    assert scene.vhost.memory is scene.memory


def test_kernel_gets_the_features_that_it_knows(scene: Scene) -> None:
    scene.driver.start()
    assert scene.vhost.accepted == SEQPACKET | VERSION_1 | 1 << 28 | 1 << 29


def test_kernel_runs_when_both_rings_are_there(scene: Scene) -> None:
    scene.driver.start(RX)
    assert not scene.runs()
    scene.driver.start_queue(TX)
    assert scene.runs()
    rx = scene.driver.queues[RX]
    ring, base = scene.vhost.rings[RX]
    assert ring == VhostRing(RX, rx.size, rx.desc_table, rx.avail_ring, rx.used_ring)
    assert base == 0


def test_kick_that_came_too_early_is_repeated(scene: Scene) -> None:
    scene.driver.start(RX, TX)
    for kick_fd, _, _ in scene.vhost.eventfds.values():
        assert os.eventfd_read(kick_fd) == 1


def test_kicks_are_left_to_the_kernel(scene: Scene) -> None:
    scene.driver.start()
    scene.driver.kick(TX)
    assert os.eventfd_read(scene.vhost.eventfds[TX][0]) == 2


def test_resumed_ring_goes_on_where_it_stood(scene: Scene) -> None:
    scene.driver.start(RX, TX)
    scene.driver.reset()
    scene.driver.start(RX)
    tx = scene.driver.queues.setdefault(TX, scene.driver.queues[RX])
    scene.memory.write(tx.used_ring, (0x00050000).to_bytes(4, "little"))
    scene.driver.start_queue(TX, resume=True)
    scene.driver.context.advance(PATIENCE_SECONDS)  # the driver handles no events
    assert scene.vhost.rings[TX][1] == 5


def test_kernel_waits_until_the_driver_has_closed_its_connections(scene: Scene) -> None:
    scene.driver.start()
    events = scene.driver.queues[EVENT]
    for _ in range(4):
        events.submit(into=[8])
    scene.driver.kick(EVENT)
    successor = NotingVhostVsock()
    scene.driver.replace(KernelVsock(VsockSpec(CID), successor))
    assert [used for _, used, _ in events.collect()] == [4]
    started_at = [successor.starts]
    events.submit(into=[8])
    scene.driver.kick(EVENT)
    started_at.append(successor.starts)
    assert started_at == [0, 1]
    assert (successor.owned, successor.cid) == (1, CID)
    assert events.collect() == []


def test_pause_stops_the_kernel_and_resume_goes_on_from_there(scene: Scene) -> None:
    scene.driver.start()
    scene.driver.worker.pause()
    assert not scene.runs()
    scene.vhost.bases.update({RX: 8, TX: 9})
    scene.driver.worker.resume()
    # What counts is where the kernel stood when it stopped.
    assert [scene.vhost.rings[number][1] for number in (RX, TX)] == [0, 0]
    assert scene.runs()
    scene.driver.worker.pause()
    scene.driver.worker.resume()
    assert [scene.vhost.rings[number][1] for number in (RX, TX)] == [8, 9]


def test_activation_of_a_paused_device_waits(scene: Scene) -> None:
    scene.driver.worker.pause()
    scene.driver.start()
    assert not scene.runs()
    scene.driver.worker.resume()
    assert scene.runs()


def test_reset_stops_the_kernel(scene: Scene) -> None:
    scene.driver.start()
    scene.driver.reset()
    assert not scene.runs()
    scene.driver.start()
    assert (scene.runs(), scene.vhost.starts) == (True, 2)


def test_reset_of_one_queue_stops_both_and_the_other_goes_on(scene: Scene) -> None:
    scene.driver.start()
    scene.vhost.bases[TX] = 7
    scene.driver.worker.stop_queue(RX)
    assert not scene.runs()
    scene.driver.start_queue(RX)
    assert scene.runs()
    assert (scene.vhost.rings[RX][1], scene.vhost.rings[TX][1]) == (0, 7)


def test_unusable_ring_never_reaches_the_kernel(scene: Scene) -> None:
    scene.driver.start(TX)
    bad = scene.driver.queues[TX].activation(RX, -1, -1)._replace(used_ring=1 << 40)
    with pytest.raises(QueueError, match="used ring"):
        scene.driver.worker.start_queue(bad, scene.driver.features)
    assert not scene.runs()


def test_error_of_the_kernel_asks_for_a_reset(scene: Scene) -> None:
    scene.driver.start()
    error_fd = scene.vhost.eventfds[RX][2]
    os.eventfd_write(error_fd, 1)
    with pytest.raises(QueueError, match="the host's kernel cannot go on"):
        scene.driver.context.fire(error_fd)
    assert not scene.runs()
    assert sorted(scene.driver.worker.abandon_own_queues()) == [RX, TX, EVENT]


def test_fresh_device_sends_no_event(scene: Scene) -> None:
    scene.driver.start()
    scene.driver.queues[EVENT].submit(into=[4])
    scene.driver.kick(EVENT)
    assert scene.driver.queues[EVENT].collect() == []


def test_address_that_another_vm_has_ends_the_device() -> None:
    class TakenVhost(NotingVhostVsock):
        def set_guest_cid(self, cid: int) -> None:
            raise OSError(errno.EADDRINUSE, "in use")

    memory = GuestMemory.create([(0, 4 << 20)])
    with pytest.raises(HostError, match=r"claim vsock address 42 .another VM has it"):
        DriverSide(KernelVsock(VsockSpec(CID), TakenVhost()), memory)
    memory.close()
