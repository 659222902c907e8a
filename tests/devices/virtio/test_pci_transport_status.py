# SPDX-License-Identifier: BSD-3-Clause
"""The status machine, feature negotiation, queue registers and resets, with a bad driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.fakes import FakeBackend, readable
from tests.devices.virtio.pci_driver import (
    ACKNOWLEDGE,
    AVAIL,
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
    USED,
    VERSION_1,
    Machine,
)

ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    machine.command(MEMORY | MASTER)
    yield machine
    machine.close()


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


# Queue registers.


@pytest.mark.parametrize("size", [0, 3, 15, 17, 512, 0x8000, 0xFFFF])
def test_queue_size_impossible_is_ignored(machine: Machine, size: int) -> None:
    machine.negotiate()
    machine.write(QUEUE_SELECT, 2, 0)
    machine.write(QUEUE_SIZE, 2, size)
    assert machine.read(QUEUE_SIZE, 2) == 256


@pytest.mark.parametrize("size", [1, 2, 128, 256])
def test_queue_size_power_of_two_is_taken(machine: Machine, size: int) -> None:
    machine.write(QUEUE_SIZE, 2, size)
    assert machine.read(QUEUE_SIZE, 2) == size


@pytest.mark.parametrize(
    ("written", "read"), [(0, 0), (2, 2), (3, NO_VECTOR), (0x8000, NO_VECTOR), (0xFFFF, NO_VECTOR)]
)
@pytest.mark.parametrize("register", [0x10, QUEUE_VECTOR])
def test_vector_out_of_range_reads_back_no_vector(
    machine: Machine, register: int, written: int, read: int
) -> None:
    machine.write(register, 2, 1)
    machine.write(register, 2, written)
    assert machine.read(register, 2) == read


def test_queue_that_does_not_exist_has_size_zero(machine: Machine) -> None:
    machine.negotiate()
    for index in (2, 0xFFFF):
        machine.write(QUEUE_SELECT, 2, index)
        for offset in (QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_RESET):
            machine.write(offset, 2, 1)
        machine.write(DESC, 4, 0x1000)
        assert machine.read(QUEUE_SIZE, 2) == 0
        assert machine.read(QUEUE_VECTOR, 2) == NO_VECTOR
        assert machine.read(QUEUE_ENABLE, 2) == 0
        assert machine.read(QUEUE_RESET, 2) == 0
        assert machine.read(DESC, 8) == 0
    assert machine.status == ACKNOWLEDGE | DRIVER | FEATURES_OK


def test_queue_address_halves_and_whole(machine: Machine) -> None:
    for offset in (DESC, AVAIL, USED):
        machine.write(offset, 4, 0x1122_3344)
        machine.write(offset + 4, 4, 0x5566_7788)
        assert machine.read(offset, 8) == 0x5566_7788_1122_3344
        machine.write(offset, 8, 0x1000)
        assert (machine.read(offset, 4), machine.read(offset + 4, 4)) == (0x1000, 0)


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_queue_enable_takes_only_one(machine: Machine, value: int) -> None:
    machine.negotiate()
    machine.write(QUEUE_ENABLE, 2, value)
    assert machine.read(QUEUE_ENABLE, 2) == 0


@pytest.mark.parametrize("poison", [0, -1, 2])
@pytest.mark.parametrize("msix", [True, False])
def test_queue_configuration_is_immutable_after_driver_ok(
    machine: Machine, poison: int, msix: bool
) -> None:
    machine.start(msix=msix)
    registers = [(o, 2) for o in (QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE)]
    registers += [(o, 4) for o in range(DESC, 0x38, 4)]
    for index in range(2):
        machine.write(QUEUE_SELECT, 2, index)
        before = [machine.read(offset, size) for offset, size in registers]
        for offset, size in registers:
            machine.write(offset, size, poison & ONES[size])
        for offset in (DESC, AVAIL, USED):
            machine.write(offset, 8, poison & ONES[8])
        assert [machine.read(offset, size) for offset, size in registers] == before
    assert machine.backend.calls == ["activate"]
    assert machine.status == 0xF


def test_queue_is_immutable_once_enabled(machine: Machine) -> None:
    machine.negotiate()
    machine.set_up_queue(0)
    machine.write(QUEUE_SIZE, 2, 8)
    machine.write(DESC, 4, 0)
    assert machine.read(QUEUE_SIZE, 2) == 16
    assert machine.read(DESC, 4) == 0x10000


def test_queue_not_enabled_before_driver_ok_stays_out(machine: Machine) -> None:
    machine.negotiate()
    machine.set_up_queue(0)
    machine.add_status(DRIVER_OK)
    machine.set_up_queue(1)
    assert machine.read(QUEUE_ENABLE, 2) == 0
    assert [queue.index for queue in machine.backend.activations[0][1]] == [0]


@pytest.mark.parametrize(
    ("register", "address"),
    [
        (DESC, 0x1008),
        (AVAIL, 0x1001),
        (USED, 0x1002),
        (DESC, 0xFFFF_FFFF_FFFF_FFF0),
        (AVAIL, 0xFFFF_FFFF_FFFF_FFFE),
        (USED, 0xFFFF_FFFF_FFFF_FFFC),
    ],
)
def test_queue_address_bad_needs_reset(machine: Machine, register: int, address: int) -> None:
    machine.negotiate()
    machine.write(register, 8, address)
    machine.write(QUEUE_ENABLE, 2, 1)
    assert machine.read(QUEUE_ENABLE, 2) == 0
    assert machine.status & NEEDS_RESET
    assert machine.line.changes == []  # no notification before DRIVER_OK
    machine.add_status(DRIVER_OK)
    assert not machine.status & DRIVER_OK
    assert machine.backend.calls == []
    machine.write(STATUS, 1, 0)
    assert machine.status == 0
    machine.start()
    assert machine.status == 0xF


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


# Queue reset.


def test_queue_reset_and_enable_again(machine: Machine) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 1)
    machine.write(QUEUE_RESET, 2, 1)
    assert machine.read(QUEUE_RESET, 2) == 1
    assert len(machine.ioeventfds.registered) == 1
    machine.transport.queue_reset_done(1)
    assert machine.read(QUEUE_RESET, 2) == 0
    assert machine.read(QUEUE_ENABLE, 2) == 0
    assert machine.read(QUEUE_SIZE, 2) == 64
    machine.set_up_queue(1, size=8, vector=2)
    assert machine.backend.calls == ["activate", "reset_queue 1", "enable_queue 1"]
    assert machine.backend.enabled[0].size == 8
    assert machine.backend.enabled[0].call_fd == machine.backend.activations[0][1][1].call_fd
    assert not machine.backend.enabled[0].resume
    assert len(machine.ioeventfds.registered) == 2
    machine.write(QUEUE_SIZE, 2, 4)
    assert machine.read(QUEUE_SIZE, 2) == 8


def test_queue_reset_with_a_bad_address_needs_reset_and_says_so(machine: Machine) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 1)
    machine.write(QUEUE_RESET, 2, 1)
    machine.transport.queue_reset_done(1)
    machine.write(USED, 8, 2)
    machine.write(QUEUE_ENABLE, 2, 1)
    assert machine.status & NEEDS_RESET
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x40)]


def test_queue_reset_not_negotiated_is_ignored(machine: Machine) -> None:
    machine.start(features=VERSION_1)
    machine.write(QUEUE_RESET, 2, 1)
    assert machine.read(QUEUE_RESET, 2) == 0
    assert machine.backend.calls == ["activate"]


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_queue_reset_takes_only_one(machine: Machine, value: int) -> None:
    machine.start()
    machine.write(QUEUE_RESET, 2, value)
    assert machine.backend.calls == ["activate"]


def test_queue_reset_before_driver_ok_is_ignored(machine: Machine) -> None:
    machine.negotiate()
    machine.set_up_queue(0)
    machine.write(QUEUE_RESET, 2, 1)
    assert machine.read(QUEUE_ENABLE, 2) == 1
    assert machine.backend.calls == []


def test_queue_reset_pending_cannot_be_configured_or_reset_again(machine: Machine) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 0)
    machine.write(QUEUE_RESET, 2, 1)
    machine.write(QUEUE_RESET, 2, 1)
    machine.set_up_queue(0, size=2)
    assert machine.read(QUEUE_SIZE, 2) == 16
    assert machine.backend.calls == ["activate", "reset_queue 0"]


def test_device_reset_overtakes_a_queue_reset(machine: Machine) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 0)
    machine.write(QUEUE_RESET, 2, 1)
    machine.write(STATUS, 1, 0)
    machine.transport.queue_reset_done(0)
    assert machine.status == 0xF
    machine.transport.reset_done()
    machine.transport.queue_reset_done(0)
    assert machine.status == 0
    machine.start()
    assert len(machine.backend.activations[1][1]) == 2


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 1 << 40])
def test_queue_reset_done_unasked_is_ignored(machine: Machine, index: int) -> None:
    machine.start()
    machine.transport.queue_reset_done(index)
    for queue in range(2):
        machine.write(QUEUE_SELECT, 2, queue)
        assert machine.read(QUEUE_ENABLE, 2) == 1


# Odd accesses.

SIZED_REGISTERS = {
    1: (0x14, 0x15),
    2: (0x10, 0x12, 0x16, 0x18, 0x1A, 0x1C, 0x1E, 0x38, 0x3A, 0x3C, 0x3E),
    4: (0x00, 0x04, 0x08, 0x0C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34),
    8: (0x20, 0x28, 0x30),
}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("value", [0, -1])
def test_common_config_any_access_never_raises(
    machine: Machine, size: int, value: int, started: bool
) -> None:
    ones = (1 << 8 * size) - 1
    for offset in range(0x48):
        if started:
            machine.start()
        machine.write(offset, size, value & ones)
        result = machine.read(offset, size)
        assert 0 <= result <= ones
        if offset not in SIZED_REGISTERS.get(size, ()):
            assert result == ones
        machine.transport.reset_done()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("value", [0, -1])
def test_bar_any_access_never_raises(machine: Machine, size: int, value: int) -> None:
    ones = (1 << 8 * size) - 1
    base = machine.region(1)
    machine.start()
    for page in range(1, 9):
        for offset in (*range(0x20), 0x28, 0x30, *range(0xFF8, 0x1001)):
            machine.mmio.write(base + 0x1000 * page + offset, size, value & ones)
            assert 0 <= machine.mmio.read(base + 0x1000 * page + offset, size) <= ones


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("value", [0, -1, 0x5555_5555_5555_5555])
def test_config_space_any_access_never_raises(machine: Machine, size: int, value: int) -> None:
    ones = (1 << 8 * size) - 1
    machine.start()
    for offset in (*range(0x110), *range(0xFF0, 0x1000)):
        machine.config_write(offset, size, value & ones)
        assert 0 <= machine.config_read(offset, size) <= ones
    assert machine.config_read(0, 4) == 0x1042_1AF4
    assert machine.config_read(0x34, 1) == 0x40
