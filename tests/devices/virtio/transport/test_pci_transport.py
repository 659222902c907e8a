# SPDX-License-Identifier: BSD-3-Clause
"""virtio-pci from the driver's side: discovery, start, interrupts, kicks, configuration."""

from __future__ import annotations

import os

import pytest

from devices.virtio.backend import QueueActivation
from devices.virtio.transport.pci_transport import PciServices, VirtioPciTransport
from sys_util.errors import ProtocolError
from tests.devices.fakes import (
    FakeBackend,
    FakeIoEventFds,
    FakeLine,
    FakeRoutes,
    make_window,
    readable,
)
from tests.devices.virtio.transport.pci_driver import (
    BLK_F_FLUSH,
    CONFIG,
    DRIVER_OK,
    FEATURES_OK,
    GENERATION,
    INTX_DISABLE,
    MASTER,
    MEMORY,
    QUEUE_NOTIFY_OFF,
    QUEUE_SELECT,
    RING_RESET,
    STATUS,
    VERSION_1,
    Machine,
)

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


@pytest.mark.parametrize(
    ("device_type", "queue_sizes", "reason"),
    [
        pytest.param(2, (256,) * 65, "65 queues, at most 64", id="queues"),
        pytest.param(2, (256, 0), "queue size 0 is not a power of two", id="no-size"),
        pytest.param(2, (96,), "queue size 96 is not a power of two", id="odd-size"),
        pytest.param(2, (0x10000,), "queue size 65536 is not", id="huge-size"),
        pytest.param(0, (256,), "no virtio device has type 0", id="no-type"),
        pytest.param(64, (256,), "no virtio device has type 64", id="type"),
    ],
)
def test_impossible_device_is_refused(
    device_type: int, queue_sizes: tuple[int, ...], reason: str
) -> None:
    _, window = make_window()
    services = PciServices(window, FakeRoutes(), FakeIoEventFds())
    backend = FakeBackend(VERSION_1, queue_sizes=queue_sizes)
    backend.device_type = device_type
    with pytest.raises(ProtocolError, match=f"fake:0: {reason}"):
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


def test_config_change_by_msix_sets_isr_bit_one_and_leaves_intx_alone(machine: Machine) -> None:
    machine.start()
    machine.transport.config_changed(CONFIG[::-1])
    assert machine.line.changes == []
    assert machine.config_read(0x06, 2) & 0x8 == 0
    assert machine.mmio.read(machine.region(3), 1) == 2
    assert machine.mmio.read(machine.region(3), 1) == 0


def test_used_buffers_by_msix_leave_isr_alone(machine: Machine) -> None:
    machine.start()
    os.eventfd_write(machine.backend.activations[0][1][0].call_fd, 1)
    assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x41)]
    assert machine.mmio.read(machine.region(3), 1) == 0


def test_config_change_by_intx_sets_isr_bit_one(machine: Machine) -> None:
    machine.start(msix=False)
    machine.transport.config_changed(CONFIG[::-1])
    assert machine.line.level
    assert machine.mmio.read(machine.region(3), 1) == 2


def test_config_that_the_driver_wrote_is_read_back_without_an_interrupt(machine: Machine) -> None:
    machine.start()
    machine.transport.config_written(b"\x01" + CONFIG[1:])
    assert machine.routes.deliver() == []
    assert machine.mmio.read(machine.region(4), 1) == 1


def test_config_that_nobody_carried_out_is_gone_after_a_reset(machine: Machine) -> None:
    machine.start()
    machine.backend.config = b"\x01" + CONFIG[1:]  # with what the driver wrote
    machine.mmio.write(machine.region(4), 1, 1)
    assert machine.mmio.read(machine.region(4), 1) == 1
    machine.backend.config = CONFIG
    machine.write(STATUS, 1, 0)
    machine.transport.reset_done()
    assert machine.mmio.read(machine.region(4), 1) == CONFIG[0]


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


# What is told of it.


def test_description_tells_kicks_and_interrupts_and_takes_none(machine: Machine) -> None:
    machine.start()
    activation = machine.backend.activations[0][1][1]
    os.eventfd_write(activation.kick_fd, 1)
    machine.config_write(machine.capabilities[0x11] + 2, 2, 0xC000)
    os.eventfd_write(activation.call_fd, 1)
    for _ in range(2):
        state = machine.transport.describe()
        assert (state.status, state.driver_features) == (0xF, VERSION_1 | RING_RESET)
        assert (state.bus_master, state.msix_enabled, state.function_masked) == (True, True, True)
        assert [queue.kicked for queue in state.queues] == [False, True]
        assert state.queues[1].avail_ring == 0x1_0002_1000
        assert [vector.signalled for vector in state.vectors] == [False, False, True]
        assert state.vectors[2][:2] == (False, False)
        assert state.vectors[2].data == 0x42


def test_description_before_a_driver_is_that_of_nothing(machine: Machine) -> None:
    state = machine.transport.describe()
    assert (state.status, state.msix_enabled, state.isr, state.intx_asserted) == (
        0,
        False,
        0,
        False,
    )
    assert not any(queue.enabled or queue.kicked or queue.direct for queue in state.queues)


def test_description_of_intx_leaves_the_isr_register(machine: Machine) -> None:
    machine.start(msix=False)
    machine.transport.config_changed(CONFIG[::-1])
    for _ in range(2):
        state = machine.transport.describe()
        assert (state.isr, state.intx_asserted) == (2, True)
    machine.command(MEMORY)
    machine.notify(0)
    assert machine.transport.describe().queues[0].kick_held


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
