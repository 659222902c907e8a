# SPDX-License-Identifier: BSD-3-Clause
"""virtio-pci: device configuration, its window, and device processes that come and go."""

from __future__ import annotations

import pytest

from sys_util.errors import ProtocolError
from tests.devices.fakes import (
    FakeBackend,
    readable,
)
from tests.devices.virtio.transport.pci_driver import (
    BLK_F_FLUSH,
    CONFIG,
    DRIVER_OK,
    FEATURES_OK,
    MEMORY,
    NEEDS_RESET,
    QUEUE_SELECT,
    RING_RESET,
    VERSION_1,
    Machine,
)

FEATURES = VERSION_1 | RING_RESET | BLK_F_FLUSH


# Device configuration.


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 8, 0x0706_0504_0302_0100),
        (3, 4, 0x0605_0403),
        (59, 1, 59),
        (58, 4, 0x3B3A),
        (60, 4, 0),
        (0xFFC, 4, 0),
        (0xFFD, 4, 0xFFFF_FFFF),
    ],
)
def test_device_config_reads_the_copy(
    machine: Machine, offset: int, size: int, expected: int
) -> None:
    machine.command(MEMORY)
    assert machine.mmio.read(machine.region(4) + offset, size) == expected


def test_device_config_write_reaches_the_backend(machine: Machine) -> None:
    machine.start()
    machine.mmio.write(machine.region(4) + 32, 4, 0x1122_3344)
    assert machine.backend.config_writes == [(32, b"\x44\x33\x22\x11")]


@pytest.mark.parametrize(("offset", "size"), [(60, 1), (59, 2), (56, 8), (0xFFC, 4)])
def test_device_config_write_past_the_end_is_ignored(
    machine: Machine, offset: int, size: int
) -> None:
    machine.start()
    machine.mmio.write(machine.region(4) + offset, size, 0)
    assert machine.backend.config_writes == []


def test_device_config_write_before_features_ok_is_ignored(machine: Machine) -> None:
    machine.command(MEMORY)
    machine.mmio.write(machine.region(4), 1, 0)
    assert machine.backend.config_writes == []


def test_emergency_write_of_a_console_needs_no_driver(machine: Machine) -> None:
    machine.backend.early_writes = True
    machine.command(MEMORY)
    machine.mmio.write(machine.region(4) + 8, 4, ord("!"))
    assert machine.backend.config_writes == [(8, b"!\0\0\0")]


def test_oversized_config_of_a_device_is_cut(machine: Machine) -> None:
    machine.start()
    machine.transport.config_changed(bytes(1 << 20))
    assert machine.mmio.read(machine.region(4) + 0xFFC, 4) == 0


# The window in configuration space.


class CfgWindow:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.at = machine.capabilities[5]

    def aim(self, offset: int, length: int, bar: int = 0) -> None:
        self.machine.config_write(self.at + 4, 1, bar)
        self.machine.config_write(self.at + 8, 4, offset)
        self.machine.config_write(self.at + 12, 4, length)

    def read(self) -> int:
        return self.machine.config_read(self.at + 16, 4)

    def write(self, value: int) -> None:
        self.machine.config_write(self.at + 16, 4, value)


def test_config_window_reaches_registers_without_memory_decoding(machine: Machine) -> None:
    window = CfgWindow(machine)
    window.aim(0x12, 2)
    assert window.read() & 0xFFFF == 2
    window.aim(0x14, 1)
    window.write(1)
    window.write(3)
    assert window.read() & 0xFF == 3
    window.aim(0x04, 4)
    assert window.read() == BLK_F_FLUSH


def test_config_window_kicks_the_eventfd(machine: Machine) -> None:
    machine.start()
    window = CfgWindow(machine)
    window.aim(0x3004, 2)
    window.write(1)
    assert readable(machine.backend.activations[0][1][1].kick_fd)


@pytest.mark.parametrize(
    ("offset", "length", "bar"),
    [
        pytest.param(0x12, 2, 1, id="bar"),
        pytest.param(0x12, 2, 0xFF, id="bar-255"),
        pytest.param(0x12, 3, 0, id="length-3"),
        pytest.param(0x12, 0, 0, id="length-0"),
        pytest.param(0x10, 8, 0, id="length-8"),
        pytest.param(0x12, 0xFFFF_FFFF, 0, id="length-huge"),
        pytest.param(0x13, 2, 0, id="unaligned"),
        pytest.param(0x8000, 1, 0, id="past-the-bar"),
        pytest.param(0xFFFF_FFFC, 4, 0, id="offset-huge"),
    ],
)
def test_config_window_badly_aimed_finds_ones(
    machine: Machine, offset: int, length: int, bar: int
) -> None:
    window = CfgWindow(machine)
    window.aim(offset, length, bar)
    window.write(0)
    assert window.read() == 0xFFFF_FFFF


# Device process.


def test_reactivate_resumes_the_same_queues(machine: Machine) -> None:
    machine.start()
    machine.notify(0)
    new = FakeBackend(machine.backend.features, config=CONFIG)
    machine.transport.reactivate(new)
    features, queues = new.activations[0]
    assert (features, [queue._replace(resume=False) for queue in queues]) == (
        machine.backend.activations[0][0],
        list(machine.backend.activations[0][1]),
    )
    assert all(queue.resume for queue in queues)
    assert readable(queues[0].kick_fd)
    assert len(machine.ioeventfds.registered) == 2
    machine.write(0x14, 1, 0)
    assert new.calls == ["activate", "reset"]


@pytest.mark.parametrize(
    ("features", "queue_sizes"),
    [(VERSION_1, (256, 64)), (FEATURES, (256,)), (FEATURES, (256, 128)), (FEATURES, (256, 3))],
)
def test_reactivate_as_another_device_is_refused(
    machine: Machine, features: int, queue_sizes: tuple[int, ...]
) -> None:
    machine.start()
    new = FakeBackend(features, queue_sizes, CONFIG)
    with pytest.raises(ProtocolError, match=r"fake:0: (not the features|queue size 3)"):
        machine.transport.reactivate(new)
    assert new.calls == []


def test_reactivate_of_an_inactive_device_waits_for_the_driver(machine: Machine) -> None:
    new = FakeBackend(machine.backend.features, config=CONFIG)
    machine.transport.reactivate(new)
    assert new.calls == []
    machine.start()
    assert new.calls == ["activate"]
    assert machine.backend.calls == []


def test_reactivate_completes_a_reset_that_was_pending(machine: Machine) -> None:
    machine.start()
    machine.write(0x14, 1, 0)
    assert machine.status == 0xF
    new = FakeBackend(machine.backend.features, config=CONFIG)
    machine.transport.reactivate(new)
    assert machine.status == 0
    assert new.calls == []


def test_reactivate_with_other_config_tells_the_driver(machine: Machine) -> None:
    machine.start()
    machine.transport.reactivate(FakeBackend(machine.backend.features, config=b"\x09"))
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x40)]
    assert machine.mmio.read(machine.region(4), 1) == 9


def test_reactivate_of_a_device_that_needs_reset_starts_nothing(machine: Machine) -> None:
    machine.start()
    machine.transport.set_needs_reset()
    new = FakeBackend(machine.backend.features, config=CONFIG)
    machine.transport.reactivate(new)
    assert new.calls == ["reset"]
    assert machine.status == 0xF | NEEDS_RESET
    machine.write(0x14, 1, 0)
    assert machine.status == 0
    machine.start()
    assert new.calls == ["reset", "activate"]


def test_backend_lost_needs_reset_and_refuses_features(machine: Machine) -> None:
    machine.start()
    machine.transport.backend_lost()
    assert machine.status == 0xF | NEEDS_RESET
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x40)]
    machine.add_status(DRIVER_OK)
    assert machine.status & NEEDS_RESET
    machine.write(0x14, 1, 0)
    assert machine.status == 0
    machine.negotiate()
    assert not machine.status & FEATURES_OK
    assert machine.backend.calls == ["activate"]


def test_backend_lost_completes_what_was_pending(machine: Machine) -> None:
    machine.start()
    machine.write(QUEUE_SELECT, 2, 0)
    machine.write(0x3A, 2, 1)
    machine.transport.backend_lost()
    assert machine.read(0x3A, 2) == 0
    assert machine.read(0x1C, 2) == 0
    machine.write(QUEUE_SELECT, 2, 1)
    machine.write(0x3A, 2, 1)
    assert machine.read(0x1C, 2) == 0
    assert machine.backend.calls == ["activate", "reset_queue 0"]
