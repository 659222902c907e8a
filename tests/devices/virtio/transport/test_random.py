# SPDX-License-Identifier: BSD-3-Clause
"""Two virtio devices under random drivers and random device processes, in random order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from devices.virtio.transport.device_state import DeviceState
from devices.virtio.transport.pci_transport import VirtioPciTransport
from tests.devices.fakes import WINDOW_BASE, WINDOW_END, FakeBackend, FakeLine
from tests.devices.virtio.transport.pci_driver import (
    CONFIG,
    DRIVER_OK,
    ECAM_BASE,
    RING_RESET,
    VERSION_1,
    Machine,
)

FEATURES = VERSION_1 | RING_RESET

sizes = st.sampled_from([1, 2, 4, 8])
values = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 11, 15, 0x4F, 0x8F, 0xFFFF, (1 << 64) - 1]),
    st.sampled_from([0xC000_0000, 0xD000_0000, 0xD000_8000, 0xD000_4000, 0xF3FF_8000]),
    st.integers(0, (1 << 64) - 1),
)
slots = st.sampled_from([0, 1])
# Mostly places that mean something: registers, capabilities, command, BAR, table, doorbells.
config_offsets = st.one_of(
    st.sampled_from([0x04, 0x05, 0x10, 0x12, 0x3C]), st.integers(0x40, 0xB0), st.integers(0, 4095)
)
bar_offsets = st.one_of(
    st.integers(0, 0x40),
    st.sampled_from([0x14, 0x16, 0x1C, 0x3A, 0x1000, 0x3000, 0x3004, 0x5000]),
    st.integers(0x4000, 0x4030),
    st.integers(0, 0x8000),
)


class RandomTransport(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(FakeBackend(FEATURES, config=CONFIG))
        self.other = VirtioPciTransport(
            FakeBackend(FEATURES), self.machine.services, FakeLine(), 10
        )
        self.machine.root.add(2, self.other)
        self.status = 0
        self.backend = self.machine.backend

    @property
    def state(self) -> DeviceState:
        return self.machine.transport._state

    def slot(self, slot: int) -> int:
        return ECAM_BASE + (slot + 1 << 15)

    def bar(self, slot: int) -> int:
        return self.machine.mmio.read(self.slot(slot) + 0x10, 4) & ~0xF

    @rule(slot=slots, offset=config_offsets, size=sizes, value=values)
    def write_config(self, slot: int, offset: int, size: int, value: int) -> None:
        self.machine.mmio.write(self.slot(slot) + offset, size, value)

    @rule(slot=slots, offset=config_offsets, size=sizes)
    def read_config(self, slot: int, offset: int, size: int) -> None:
        value = self.machine.mmio.read(self.slot(slot) + offset, size)
        assert 0 <= value < 1 << 8 * size

    @rule(slot=slots, offset=bar_offsets, size=sizes, value=values)
    def write_bar(self, slot: int, offset: int, size: int, value: int) -> None:
        self.machine.mmio.write(self.bar(slot) + offset, size, value)

    @rule(slot=slots, offset=bar_offsets, size=sizes)
    def read_bar(self, slot: int, offset: int, size: int) -> None:
        value = self.machine.mmio.read(self.bar(slot) + offset, size)
        assert 0 <= value < 1 << 8 * size

    @rule(port=st.integers(0xCF8, 0xCFF), size=sizes, value=values)
    def write_port(self, port: int, size: int, value: int) -> None:
        self.machine.pio.write(port, size, value)
        self.machine.pio.read(port, size)

    @rule(command=st.sampled_from([0, 2, 4, 6, 0x406]))
    def write_command(self, command: int) -> None:
        self.machine.command(command)

    @rule(msix=st.booleans())
    def start(self, msix: bool) -> None:
        self.machine.config_write(0x10, 4, WINDOW_BASE + 0x10_0000)
        self.machine.start(features=FEATURES, msix=msix)
        self.status = self.state.status

    @precondition(lambda self: self.backend.calls[-1:] == ["reset"])
    @rule()
    def answer_reset(self) -> None:
        self.backend.calls.append("answered")
        by_driver = self.state._reset_pending  # else a new process forgets a dead driver
        self.machine.transport.reset_done()
        assert self.state.status == 0 or not by_driver

    @rule(index=st.integers(-1, 3))
    def answer_queue_reset(self, index: int) -> None:
        self.machine.transport.queue_reset_done(index)

    @rule(config=st.binary(max_size=80))
    def change_config(self, config: bytes) -> None:
        self.machine.transport.config_changed(config)

    @rule()
    def need_reset(self) -> None:
        self.machine.transport.set_needs_reset()

    @rule()
    def lose_backend(self) -> None:
        self.backend.calls.append("lost")  # and with it the resets that it owes
        self.machine.transport.backend_lost()

    @rule()
    def restart_backend(self) -> None:
        self.backend = FakeBackend(FEATURES, config=CONFIG)
        self.machine.transport.reactivate(self.backend)

    @rule()
    def interrupt_by_intx(self) -> None:
        self.machine.transport.on_intx_event()

    @rule(queue=st.integers(0, 1))
    def kick(self, queue: int) -> None:
        self.machine.notify(queue)

    @invariant()
    def status_bits_stay_until_reset(self) -> None:
        assert self.state.status in (0, self.state.status | self.status)
        self.status = self.state.status

    @invariant()
    def running_queues_are_what_the_backend_was_told(self) -> None:
        told = {}
        if self.backend.activations:
            told = {queue.index: queue for queue in self.backend.activations[-1][1]}
            told.update((queue.index, queue) for queue in self.backend.enabled)
        if not self.state.active or not self.state.status & DRIVER_OK:
            return
        for queue in self.state.queues:
            if queue.enabled:
                _, size, *addresses, _, _, _ = told[queue.index]
                assert (size, addresses) == (queue.size, queue.addresses)

    @invariant()
    def bars_are_in_the_window_and_disjoint(self) -> None:
        ranges = [r for r in self.machine.mmio.ranges if r.base != ECAM_BASE]
        assert all(r.base >= WINDOW_BASE and r.end <= WINDOW_END for r in ranges)
        assert all(a.end <= b.base for a, b in pairwise(ranges))
        notify = [(r.base + 0x3000, r.base + 0x3008) for r in ranges]
        for address in self.machine.ioeventfds.registered:
            assert any(start <= address < end for start, end in notify)

    @invariant()
    def interrupts_take_one_way(self) -> None:
        self.machine.routes.deliver()
        if self.machine.line.level:
            assert not self.machine.transport._msix.enabled

    def teardown(self) -> None:
        self.other.close()
        self.machine.close()


RandomTransport.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


TestRandomTransport = pytest.mark.slow(RandomTransport.TestCase)
