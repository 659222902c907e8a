# SPDX-License-Identifier: BSD-3-Clause
"""The state of a device in one word, and its queues, as the vmm sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.vmm.status import DeviceStatus
from devices.virtio.backend import QueueActivation
from tests.crosvm_py import hostile_device
from tests.crosvm_py.hostile_device import READY, HostileDevice, RecordedEvents

if TYPE_CHECKING:
    from devices.virtio.backend import VirtioBackend


def queue(index: int, size: int) -> QueueActivation:
    return QueueActivation(index, size, 0, 0, 0, -1, -1, False)


@pytest.fixture
def status() -> DeviceStatus:
    status = DeviceStatus()
    status.ready = True
    return status


def test_process_that_said_nothing_yet_is_starting() -> None:
    assert DeviceStatus().word == "starting"


def test_driver_makes_it_active_and_a_reset_idle(status: DeviceStatus) -> None:
    assert status.word == "idle"
    status.activated([queue(0, 128)])
    assert status.word == "active"
    status.reset()
    assert status.word == "idle"


def test_device_needs_a_reset_until_it_gets_one(status: DeviceStatus) -> None:
    status.activated([queue(0, 128)])
    status.needs_reset = True
    assert status.word == "needs-reset"
    status.reset()
    assert status.word == "idle"


def test_pause_hides_the_rest_and_death_everything(status: DeviceStatus) -> None:
    status.activated([queue(0, 128)])
    status.needs_reset = True
    status.paused = True
    assert status.word == "paused"
    status.dead = True
    assert status.word == "dead"


def test_queues_tell_the_drivers_size_or_the_greatest(status: DeviceStatus) -> None:
    status.activated([queue(0, 128), queue(2, 64)])
    assert status.queues((256, 256, 64)) == ((128, True), (256, False), (64, True))
    status.queue_enabled(queue(1, 32))
    status.queue_stopped(0)
    status.queue_stopped(7)
    assert status.queues((256, 256, 64)) == ((256, False), (32, True), (64, True))


def test_status_follows_what_the_vmm_asks_and_hears() -> None:
    device = HostileDevice()
    host = device.host
    words = [host.status.word]
    device.send(READY)
    device.turn()
    words.append(host.status.word)
    with hostile_device.queue(0) as activation:
        host.activate(1 << 32, [activation])
        words.append(host.status.word)
        host.reset_queue(0)
        words.append(host.status.word)
        host.enable_queue(activation)
    device.send(protocol.QueueFailed(0, "nonsense"))
    device.turn()
    words.append(host.status.word)
    host.reset()
    words.append(host.status.word)
    host.pause(lambda: None)
    words.append(host.status.word)
    device.send(protocol.Done(5))
    device.turn()
    words.append(host.status.word)
    host.resume(lambda: None)
    device.send(protocol.Done(6))
    device.turn()
    words.append(host.status.word)
    device.close()
    words.append(host.status.word)
    host.give_up()
    words.append(host.status.word)
    before = ["starting", "idle", "active", "idle", "needs-reset", "idle", "idle"]
    assert words == [*before, "paused", "idle", "restarting", "dead"]


class ResettingEvents(RecordedEvents):
    """The transport of a device that needs a reset: a new process begins with one."""

    def reactivate(self, backend: VirtioBackend) -> None:
        backend.reset()


@pytest.mark.parametrize("resets", [True, False])
def test_need_of_a_reset_outlives_the_process_and_ends_with_the_reset(*, resets: bool) -> None:
    device = HostileDevice()
    device.host.events = ResettingEvents(device.lock)
    device.send(READY, protocol.QueueFailed(0, "nonsense"))
    device.turn()
    device.sock.close()
    device.turn()
    if resets:
        device.host.reset()
    device.attach()
    device.send(READY)
    device.turn()
    assert device.host.status.word == ("idle" if resets else "needs-reset")
    device.host.reset()
    assert device.host.status.word == "idle"
    device.close()


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_dead_device_is_held_at_once(verb: str) -> None:
    device = HostileDevice()
    device.close()
    done: list[bool] = []
    getattr(device.host, verb)(lambda: done.append(True))
    assert done == [True]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_device_that_dies_while_it_should_hold_holds_nobody_up(verb: str) -> None:
    device = HostileDevice()
    device.send(READY)
    device.turn()
    done: list[bool] = []
    getattr(device.host, verb)(lambda: done.append(True))
    assert done == []
    device.sock.close()
    device.turn()
    assert done == [True]
    device.close()
    assert done == [True]
