# SPDX-License-Identifier: BSD-3-Clause
"""A virtio device in a machine that is reset: its registers, and when its process has let go."""

from __future__ import annotations

import pytest

from tests.devices.virtio.transport.pci_driver import (
    MASTER,
    MEMORY,
    QUEUE_RESET,
    QUEUE_SELECT,
    STATUS,
    Machine,
)


class Told:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def told() -> Told:
    return Told()


def registers(machine: Machine) -> tuple[list[int], list[int], list[int]]:
    """Return configuration space, and of the BAR the common structure and the MSI-X table."""
    space = [machine.config_read(at, 4) for at in range(0, 256, 4)]
    machine.command(MEMORY)
    common = [
        *(machine.read(at, 4) for at in (0x00, 0x04, 0x08, 0x0C)),
        *(machine.read(at, 2) for at in (0x10, 0x12, 0x16, 0x18, 0x1A, 0x1C, 0x3A)),
        *(machine.read(at, 1) for at in (0x14, 0x15)),
        *(machine.read(at, 8) for at in (0x20, 0x28, 0x30)),
    ]
    table = machine.region(1) - (machine.region(1) & 0xFFFF) + 0x4000
    vectors = [machine.mmio.read(table + at, 4) for at in range(0, 48, 4)]
    return space, common, vectors


def test_power_on_of_a_device_that_runs_waits_for_its_process(machine: Machine, told: Told) -> None:
    machine.start()
    machine.backend.calls.clear()
    machine.transport.power_on(told)
    assert (machine.backend.calls, told.count) == (["reset"], 0)
    assert (machine.ioeventfds.registered, machine.routes.attached) == ({}, {})
    machine.transport.reset_done()
    assert told.count == 1
    machine.transport.reset_done()
    assert told.count == 1


def test_power_on_leaves_the_registers_of_a_new_device(machine: Machine, told: Told) -> None:
    machine.start()
    machine.config_write(0x10, 4, 0xD100_0000)
    machine.config_write(0x3C, 1, 7)
    machine.read(0x15, 1)
    machine.transport.power_on(told)
    machine.transport.reset_done()
    fresh = Machine()
    assert registers(machine) == registers(fresh)
    fresh.close()


def test_power_on_of_a_device_without_a_driver_is_done_at_once(
    machine: Machine, told: Told
) -> None:
    machine.transport.power_on(told)
    assert (machine.backend.calls, told.count) == ([], 1)


def test_power_on_while_the_driver_resets_waits_for_that_reset(
    machine: Machine, told: Told
) -> None:
    machine.start()
    machine.write(STATUS, 1, 0)
    machine.transport.power_on(told)
    assert (machine.backend.calls, told.count) == (["activate", "reset"], 0)
    machine.transport.reset_done()
    assert told.count == 1


def test_power_on_while_a_queue_is_reset_forgets_that(machine: Machine, told: Told) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 1)
    machine.write(QUEUE_RESET, 2, 1)
    machine.transport.power_on(told)
    machine.transport.queue_reset_done(1)
    assert told.count == 0
    machine.transport.reset_done()
    machine.transport.queue_reset_done(1)
    assert told.count == 1
    machine.start()
    assert machine.status == 15


def test_power_on_is_complete_when_the_process_was_replaced(machine: Machine, told: Told) -> None:
    machine.start()
    machine.transport.power_on(told)
    machine.transport.reactivate(machine.backend)
    assert told.count == 1


def test_power_on_is_complete_when_the_process_is_lost(machine: Machine, told: Told) -> None:
    machine.start()
    machine.transport.power_on(told)
    machine.transport.backend_lost()
    assert told.count == 1
    machine.transport.power_on(told)
    assert told.count == 2


def test_device_runs_again_after_power_on(machine: Machine, told: Told) -> None:
    machine.start()
    machine.notify(0)
    machine.transport.power_on(told)
    machine.transport.reset_done()
    machine.start()
    assert machine.status == 15
    activated = machine.backend.activations[-1][1]
    assert [queue.resume for queue in activated] == [False, False]
    machine.command(MEMORY | MASTER)
    assert len(machine.ioeventfds.registered) == 2
