# SPDX-License-Identifier: BSD-3-Clause
"""The status machine, feature negotiation, queue registers and resets, with a bad driver."""

from __future__ import annotations

import pytest

from tests.devices.fakes import FakeBackend, readable
from tests.devices.virtio.transport.pci_driver import (
    ACKNOWLEDGE,
    BLK_F_FLUSH,
    DESC,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    MASTER,
    MEMORY,
    NEEDS_RESET,
    NO_VECTOR,
    QUEUE_ENABLE,
    QUEUE_RESET,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_VECTOR,
    RING_RESET,
    STATUS,
    VERSION_1,
    Machine,
)


@pytest.fixture
def machine(machine: Machine) -> Machine:
    machine.command(MEMORY | MASTER)
    return machine


# Status and features.


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        pytest.param([1, 3, 11, 15], 15, id="linux"),
        pytest.param([3, 11, 15], 15, id="two-steps-in-one"),
        pytest.param([15], 15, id="all-in-one"),
        pytest.param([2], 0, id="driver-first"),
        pytest.param([1, 9], 1, id="features-before-driver"),
        pytest.param([1, 3, 7], 3, id="driver-ok-before-features"),
        pytest.param([4], 0, id="driver-ok-only"),
        pytest.param([1, 3, 2], 3, id="clears-acknowledge"),
        pytest.param([3, 11, 7], 11, id="clears-features-ok"),
        pytest.param([3, 0x33], 3, id="reserved-bits"),
        pytest.param([1, 0x41], 1, id="needs-reset-by-driver"),
        pytest.param([1, 3, 0x83], 0x83, id="failed"),
        pytest.param([3, 0x83, 0x8F], 0x83, id="nothing-after-failed"),
        pytest.param([3, 0x83, 0x03], 0x83, id="failed-stays"),
        pytest.param([3, 0x83, 0], 0, id="reset-after-failed"),
        pytest.param([0, 0], 0, id="reset-of-reset"),
    ],
)
def test_status_goes_only_where_it_may(machine: Machine, writes: list[int], expected: int) -> None:
    machine.acknowledge_features(VERSION_1)
    for value in writes:
        machine.write(STATUS, 1, value)
    assert machine.status == expected


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        pytest.param(VERSION_1, True, id="least"),
        pytest.param(VERSION_1 | RING_RESET | BLK_F_FLUSH, True, id="all"),
        pytest.param(BLK_F_FLUSH, False, id="no-version-1"),
        pytest.param(0, False, id="none"),
        pytest.param(VERSION_1 | 1 << 10, False, id="not-offered"),
        pytest.param(VERSION_1 | 1 << 63, False, id="not-offered-high"),
        pytest.param((1 << 64) - 1, False, id="everything"),
    ],
)
def test_features_ok_only_for_an_offered_subset(
    machine: Machine, features: int, accepted: bool
) -> None:
    machine.negotiate(features)
    assert bool(machine.status & FEATURES_OK) is accepted
    machine.write(0x08, 4, 0)
    assert machine.read(0x0C, 4) == features & 0xFFFF_FFFF


def test_features_are_frozen_by_features_ok(machine: Machine) -> None:
    machine.negotiate(VERSION_1)
    machine.acknowledge_features(VERSION_1 | BLK_F_FLUSH)
    machine.add_status(DRIVER_OK)
    assert machine.backend.activations[0][0] == VERSION_1


def test_features_beyond_the_offered_words(machine: Machine) -> None:
    for select in (2, 3, 4, 0xFFFF_FFFF):
        machine.write(0x00, 4, select)
        assert machine.read(0x04, 4) == 0
        machine.write(0x08, 4, select)
        machine.write(0x0C, 4, 0)
        assert machine.read(0x0C, 4) == 0
    machine.write(0x08, 4, 3)
    machine.write(0x0C, 4, 1)
    machine.negotiate(VERSION_1)
    assert machine.status & FEATURES_OK  # the reset in between forgot word 3
    machine.write(STATUS, 1, 0)
    machine.write(0x08, 4, 3)
    machine.write(0x0C, 4, 1)
    machine.acknowledge_features(VERSION_1)
    machine.write(STATUS, 1, 11)
    assert machine.status == 3


def test_failed_after_driver_ok_does_not_stop_a_reset(machine: Machine) -> None:
    machine.start()
    machine.add_status(FAILED)
    machine.write(STATUS, 1, 0)
    machine.transport.reset_done()
    assert machine.status == 0


# DEVICE_NEEDS_RESET.


def test_needs_reset_is_set_once_and_told(machine: Machine) -> None:
    machine.start()
    generation = machine.read(0x15, 1)
    machine.transport.set_needs_reset()
    machine.transport.set_needs_reset()
    assert machine.status == 0xF | NEEDS_RESET
    assert machine.read(0x15, 1) == generation + 1
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x40)]
    assert machine.routes.deliver() == []


@pytest.mark.parametrize("value", [0xF, 0x4F, 0x3F])
def test_needs_reset_stays_whatever_the_driver_writes(machine: Machine, value: int) -> None:
    machine.start()
    machine.transport.set_needs_reset()
    machine.write(STATUS, 1, value)
    assert machine.status == 0xF | NEEDS_RESET


def test_needs_reset_of_an_inactive_device_is_ignored(machine: Machine) -> None:
    machine.negotiate()
    machine.transport.set_needs_reset()
    assert machine.status == ACKNOWLEDGE | DRIVER | FEATURES_OK


# Reset.


def test_reset_pending_shows_the_old_status(machine: Machine) -> None:
    machine.start()
    machine.write(STATUS, 1, 0)
    assert machine.status == 0xF
    assert machine.ioeventfds.registered == {}
    machine.transport.reset_done()
    assert machine.status == 0
    assert machine.backend.calls == ["activate", "reset"]


def test_reset_twice_asks_once(machine: Machine) -> None:
    machine.start()
    machine.write(STATUS, 1, 0)
    machine.write(STATUS, 1, 0)
    machine.transport.reset_done()
    machine.transport.reset_done()
    assert machine.backend.calls == ["activate", "reset"]
    assert machine.status == 0


def test_reset_before_activation_completes_at_once(machine: Machine) -> None:
    machine.negotiate()
    machine.set_up_queue(0)
    machine.write(STATUS, 1, 0)
    assert machine.status == 0
    assert machine.backend.calls == []
    assert machine.read(QUEUE_ENABLE, 2) == 0
    assert machine.read(QUEUE_SIZE, 2) == 256
    assert machine.read(DESC, 8) == 0


def test_reset_forgets_everything_of_the_driver(machine: Machine) -> None:
    machine.start()
    machine.notify(0)
    machine.write(STATUS, 1, 0)
    machine.transport.reset_done()
    machine.write(QUEUE_SELECT, 2, 0)
    assert machine.read(0x10, 2) == NO_VECTOR
    assert machine.read(QUEUE_VECTOR, 2) == NO_VECTOR
    assert machine.read(QUEUE_ENABLE, 2) == 0
    assert machine.read(0x0C, 4) == 0
    assert not readable(machine.backend.activations[0][1][0].kick_fd)


def test_writes_while_a_reset_is_pending_change_nothing(machine: Machine) -> None:
    machine.start()
    machine.write(STATUS, 1, 0)
    machine.write(STATUS, 1, ACKNOWLEDGE | DRIVER)
    machine.acknowledge_features(0)
    machine.set_up_queue(0)
    machine.write(QUEUE_RESET, 2, 1)
    machine.notify(0)
    machine.mmio.write(machine.region(4), 1, 0)
    machine.transport.set_needs_reset()
    assert machine.status == 0xF
    assert machine.backend.calls == ["activate", "reset"]
    machine.transport.reset_done()
    assert machine.status == 0


def test_backend_that_answers_within_the_call_is_fine() -> None:
    class Quick(FakeBackend):
        def reset(self) -> None:
            super().reset()
            quick.transport.reset_done()

        def reset_queue(self, index: int) -> None:
            super().reset_queue(index)
            quick.transport.queue_reset_done(index)

    quick = Machine(Quick(VERSION_1 | RING_RESET))
    quick.start()
    quick.write(QUEUE_SELECT, 2, 1)
    quick.write(QUEUE_RESET, 2, 1)
    assert quick.read(QUEUE_RESET, 2) == 0
    assert quick.read(QUEUE_ENABLE, 2) == 0
    quick.write(STATUS, 1, 0)
    assert quick.status == 0
    quick.close()
