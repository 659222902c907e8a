# SPDX-License-Identifier: BSD-3-Clause
"""Queue registers, queue resets, and accesses that no driver should make."""

from __future__ import annotations

import pytest

from tests.devices.virtio.transport.pci_driver import (
    ACKNOWLEDGE,
    AVAIL,
    DESC,
    DRIVER,
    DRIVER_OK,
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
    STATUS,
    USED,
    VERSION_1,
    Machine,
)

ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


@pytest.fixture
def machine(machine: Machine) -> Machine:
    machine.command(MEMORY | MASTER)
    return machine


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


def test_queue_that_was_reset_stays_out_of_a_device_reset(machine: Machine) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 0)
    machine.write(QUEUE_RESET, 2, 1)
    machine.transport.queue_reset_done(0)
    machine.write(STATUS, 1, 0)
    machine.set_up_queue(0)
    assert machine.read(QUEUE_ENABLE, 2) == 0
    assert machine.backend.calls == ["activate", "reset_queue 0", "reset"]


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
