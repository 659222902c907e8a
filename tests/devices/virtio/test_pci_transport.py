# SPDX-License-Identifier: BSD-3-Clause
"""virtio-pci from the driver's side: discovery, start, interrupts, kicks, configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from devices.virtio.backend import QueueActivation
from devices.virtio.pci_transport import PciServices, VirtioPciTransport
from tests.devices.fakes import (
    FakeBackend,
    FakeIoEventFds,
    FakeLine,
    FakeRoutes,
    make_window,
    readable,
)
from tests.devices.virtio.pci_driver import (
    BLK_F_FLUSH,
    CONFIG,
    DRIVER_OK,
    FEATURES_OK,
    GENERATION,
    INTX_DISABLE,
    MASTER,
    MEMORY,
    NEEDS_RESET,
    QUEUE_NOTIFY_OFF,
    QUEUE_SELECT,
    RING_RESET,
    VERSION_1,
    Machine,
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


# Discovery.


def test_identity_is_a_modern_virtio_block_device(machine: Machine) -> None:
    assert machine.config_read(0x00, 4) == 0x1042_1AF4
    assert machine.config_read(0x08, 4) == 0x0180_0001
    assert machine.config_read(0x2C, 4) == 0x1042_1AF4
    assert machine.config_read(0x3C, 2) == 0x010B


def test_capabilities_describe_disjoint_pages_of_bar_zero(machine: Machine) -> None:
    assert set(machine.capabilities) == {1, 2, 3, 4, 5, 0x11}
    offsets = []
    for cfg_type in (1, 2, 3, 4):
        at = machine.capabilities[cfg_type]
        assert machine.config_read(at + 2, 1) == (20 if cfg_type == 2 else 16)
        assert machine.config_read(at + 4, 1) == 0
        assert 0 < machine.config_read(at + 12, 4) <= 0x1000
        offsets.append(machine.config_read(at + 8, 4))
    msix = machine.capabilities[0x11]
    offsets += [machine.config_read(msix + 4, 4), machine.config_read(msix + 8, 4)]
    assert len({offset // 0x1000 for offset in offsets}) == 6
    assert machine.config_read(machine.capabilities[2] + 16, 4) == 4
    assert machine.config_read(msix + 2, 2) == 2


def test_memory_decoding_off_hides_the_bar(machine: Machine) -> None:
    assert machine.read(0x12, 2) == 0xFFFF
    machine.command(MEMORY)
    assert machine.read(0x12, 2) == 2
    machine.command(0)
    assert machine.read(0x12, 2) == 0xFFFF


def test_too_many_queues_are_refused() -> None:
    _, window = make_window()
    services = PciServices(window, FakeRoutes(), FakeIoEventFds())
    backend = FakeBackend(VERSION_1, queue_sizes=(256,) * 65)
    with pytest.raises(ValueError, match="fake:0: 65 queues, at most 64"):
        VirtioPciTransport(backend, services, FakeLine(), 10)


def test_sixty_four_queues_fit() -> None:
    machine = Machine(FakeBackend(VERSION_1, queue_sizes=(2,) * 64))
    machine.command(MEMORY | MASTER)
    machine.enable_msix(*range(65))
    machine.negotiate(VERSION_1)
    for index in range(64):
        machine.set_up_queue(index, size=2, vector=index + 1)
    machine.add_status(DRIVER_OK)
    assert len(machine.ioeventfds.registered) == 64
    assert len(machine.routes.attached) == 65
    for queue in machine.backend.activations[0][1]:
        os.eventfd_write(queue.call_fd, 1)
    assert len(machine.routes.deliver()) == 64
    machine.close()


# Start, as the Linux driver does it.


def test_start_hands_the_queues_to_the_backend(machine: Machine) -> None:
    machine.command(MEMORY | MASTER)
    machine.enable_msix(0, 1, 2)
    assert machine.offered() == VERSION_1 | RING_RESET | BLK_F_FLUSH
    machine.negotiate(VERSION_1 | BLK_F_FLUSH)
    assert machine.status & FEATURES_OK
    machine.write(QUEUE_SELECT, 2, 1)
    assert machine.read(0x18, 2) == 64
    assert machine.read(QUEUE_NOTIFY_OFF, 2) == 1
    machine.set_up_queue(1, size=32, vector=2)
    assert machine.backend.calls == []
    machine.add_status(DRIVER_OK)
    assert machine.status == 0xF
    features, (queue,) = machine.backend.activations[0]
    assert features == VERSION_1 | BLK_F_FLUSH
    assert queue == QueueActivation(
        index=1,
        size=32,
        desc_table=0x1_0001_1000,
        avail_ring=0x1_0002_1000,
        used_ring=0x1_0003_1000,
        kick_fd=queue.kick_fd,
        call_fd=queue.call_fd,
        resume=False,
    )
    assert set(machine.ioeventfds.registered.items()) == {(machine.region(2) + 4, queue.kick_fd)}


def test_second_drive_after_reset_is_the_same(machine: Machine) -> None:
    machine.start()
    machine.write(0x14, 1, 0)
    machine.transport.reset_done()
    machine.start()
    assert machine.backend.calls == ["activate", "reset", "activate"]
    assert machine.backend.activations[0] == machine.backend.activations[1]


# Interrupts.


def test_queue_interrupt_is_delivered_by_its_vector(machine: Machine) -> None:
    machine.start()
    _, queues = machine.backend.activations[0]
    os.eventfd_write(queues[1].call_fd, 1)
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x42)]
    assert machine.line.changes == []


def test_intx_queue_interrupt_raises_the_line_until_isr_is_read(machine: Machine) -> None:
    machine.start(msix=False)
    _, queues = machine.backend.activations[0]
    assert {queue.call_fd for queue in queues} == {machine.transport.intx_fd}
    os.eventfd_write(queues[0].call_fd, 1)
    machine.transport.on_intx_event()
    assert machine.line.changes == [True]
    assert machine.config_read(0x06, 2) & 8
    assert machine.mmio.read(machine.region(3), 1) == 1
    assert machine.mmio.read(machine.region(3), 1) == 0
    assert machine.line.changes == [True, False]
    assert not machine.config_read(0x06, 2) & 8


def test_intx_event_without_signal_changes_nothing(machine: Machine) -> None:
    machine.start(msix=False)
    machine.transport.on_intx_event()
    assert machine.line.changes == []


def test_intx_event_of_an_inactive_device_is_dropped(machine: Machine) -> None:
    machine.command(MEMORY)
    os.eventfd_write(machine.transport.intx_fd, 1)
    machine.transport.on_intx_event()
    assert machine.line.changes == []
    assert not readable(machine.transport.intx_fd)


def test_intx_disable_lowers_the_line_and_keeps_isr(machine: Machine) -> None:
    machine.start(msix=False)
    os.eventfd_write(machine.transport.intx_fd, 1)
    machine.transport.on_intx_event()
    machine.command(MEMORY | MASTER | INTX_DISABLE)
    assert machine.line.changes == [True, False]
    machine.command(MEMORY | MASTER)
    assert machine.line.changes == [True, False, True]
    assert machine.mmio.read(machine.region(3), 1) == 1


def test_intx_event_after_msix_was_enabled_goes_to_the_vectors() -> None:
    machine = Machine()
    machine.command(MEMORY | MASTER)
    machine.negotiate()
    machine.set_up_queue(0, vector=1)
    machine.add_status(DRIVER_OK)
    machine.enable_msix(0, 1)
    os.eventfd_write(machine.backend.activations[0][1][0].call_fd, 1)
    machine.transport.on_intx_event()
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x41)]
    assert machine.line.changes == []
    machine.close()


def test_config_change_interrupts_and_changes_the_generation(machine: Machine) -> None:
    machine.start()
    before = machine.read(GENERATION, 1)
    machine.transport.config_changed(b"\x01" + CONFIG[1:])
    assert machine.read(GENERATION, 1) != before
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x40)]
    assert machine.mmio.read(machine.region(4), 1) == 1


def test_config_change_by_intx_sets_isr_bit_one(machine: Machine) -> None:
    machine.start(msix=False)
    machine.transport.config_changed(CONFIG[::-1])
    assert machine.line.level
    assert machine.mmio.read(machine.region(3), 1) == 2


def test_config_change_before_driver_ok_is_silent(machine: Machine) -> None:
    machine.command(MEMORY | MASTER)
    machine.negotiate()
    machine.transport.config_changed(CONFIG[::-1])
    assert machine.line.changes == []
    assert machine.read(GENERATION, 1) == 1


def test_reset_forgets_pending_interrupts(machine: Machine) -> None:
    machine.start()
    at = machine.capabilities[0x11]
    machine.config_write(at + 2, 2, 0xC000)
    os.eventfd_write(machine.backend.activations[0][1][0].call_fd, 1)
    machine.write(0x14, 1, 0)
    machine.transport.reset_done()
    machine.config_write(at + 2, 2, 0x8000)
    assert machine.routes.deliver() == []


# Kicks.


def test_kick_reaches_the_queues_eventfd_without_ioeventfd(machine: Machine) -> None:
    machine.ioeventfds.refuse = True
    machine.start()
    machine.notify(1)
    kicks = [queue.kick_fd for queue in machine.backend.activations[0][1]]
    assert [readable(fd) for fd in kicks] == [False, True]


def test_ioeventfds_follow_the_bar(machine: Machine) -> None:
    machine.start()
    kicks = [queue.kick_fd for queue in machine.backend.activations[0][1]]
    machine.config_write(0x10, 4, 0xE000_0000)
    assert machine.ioeventfds.registered == {0xE000_3000: kicks[0], 0xE000_3004: kicks[1]}
    machine.config_write(0x10, 4, 0xFFFF_FFFF)
    assert machine.ioeventfds.registered == {}
    machine.config_write(0x10, 4, 0xD000_0000)
    assert len(machine.ioeventfds.registered) == 2
    machine.command(MASTER)
    assert machine.ioeventfds.registered == {}


def test_bus_master_off_holds_kicks(machine: Machine) -> None:
    machine.start()
    machine.command(MEMORY)
    assert machine.ioeventfds.registered == {}
    machine.notify(0)
    kicks = [queue.kick_fd for queue in machine.backend.activations[0][1]]
    assert [readable(fd) for fd in kicks] == [False, False]
    machine.command(MEMORY | MASTER)
    assert [readable(fd) for fd in kicks] == [True, False]
    assert len(machine.ioeventfds.registered) == 2


@pytest.mark.parametrize("offset", [1, 2, 3, 8, 0xFC, 0xFFC])
def test_kick_at_a_place_without_queue_is_ignored(machine: Machine, offset: int) -> None:
    machine.start()
    machine.mmio.write(machine.region(2) + offset, 2, 0)
    assert not any(readable(queue.kick_fd) for queue in machine.backend.activations[0][1])
    assert machine.mmio.read(machine.region(2) + offset, 2) == 0xFFFF


def test_kick_before_driver_ok_is_ignored(machine: Machine) -> None:
    machine.command(MEMORY | MASTER)
    machine.negotiate()
    machine.set_up_queue(0)
    machine.notify(0)
    machine.add_status(DRIVER_OK)
    assert not readable(machine.backend.activations[0][1][0].kick_fd)


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
    assert new.calls == []
    assert machine.status == 0xF | NEEDS_RESET
    machine.write(0x14, 1, 0)
    assert machine.status == 0
    machine.start()
    assert new.calls == ["activate"]


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
