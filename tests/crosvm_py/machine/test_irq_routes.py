# SPDX-License-Identifier: BSD-3-Clause
"""The GSI table, with a fake KVM that keeps what it is told and can refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.machine.irq_routes import (
    MAX_ROUTES,
    IrqRoutes,
    KvmIrqLine,
)
from crosvm_py.machine.x86_64.irqchip import IOAPIC_PINS, chip_wiring
from devices.irq_line import SharedIrqLine
from kvm.vm import ChipRoute, MsiRoute
from sys_util.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

LAPIC = 0xFEE0_0000
EVENTFD = 7
REFUSED_DATA = 0xBAD


class FakeVm:
    def __init__(self) -> None:
        self.tables: list[tuple[MsiRoute, ...]] = []
        self.irqfds: set[tuple[int, int]] = set()
        self.levels: list[tuple[int, bool]] = []

    def set_gsi_routing(
        self, chip_routes: Sequence[ChipRoute], msi_routes: Sequence[MsiRoute]
    ) -> None:
        assert len(chip_routes) == 40
        if any(route.data == REFUSED_DATA for route in msi_routes):
            raise HostError("KVM_SET_GSI_ROUTING", "refused")
        self.tables.append(tuple(msi_routes))

    def assign_irqfd(self, gsi: int, eventfd: int) -> None:
        self.irqfds.add((gsi, eventfd))

    def deassign_irqfd(self, gsi: int, eventfd: int) -> None:
        self.irqfds.remove((gsi, eventfd))

    def set_irq_line(self, gsi: int, *, asserted: bool) -> None:
        self.levels.append((gsi, asserted))


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def routes(vm: FakeVm) -> IrqRoutes:
    return IrqRoutes(vm, chip_wiring())


def test_pins_are_those_of_kvm_itself() -> None:
    pins = chip_wiring().routes
    assert [(gsi, pin) for gsi, chip, pin in pins if chip == 2] == [(n, n) for n in range(24)]
    assert [(gsi, pin) for gsi, chip, pin in pins if chip == 0] == [(n, n) for n in range(8)]
    assert [(gsi, pin) for gsi, chip, pin in pins if chip == 1] == [(n + 8, n) for n in range(8)]


def test_allocate_starts_after_the_pins_and_reuses_what_was_freed(routes: IrqRoutes) -> None:
    first, second, third = (routes.allocate() for _ in range(3))
    assert (first, second, third) == (IOAPIC_PINS, IOAPIC_PINS + 1, IOAPIC_PINS + 2)
    routes.free(second)
    assert routes.allocate() == second


def test_allocate_ends_where_kvms_table_ends(routes: IrqRoutes) -> None:
    for _ in range(MAX_ROUTES - 40 - IOAPIC_PINS):
        routes.allocate()
    with pytest.raises(HostError, match="all 4096 routes of KVM are in use"):
        routes.allocate()


def test_table_waits_for_the_first_attached_eventfd(vm: FakeVm, routes: IrqRoutes) -> None:
    gsis = [routes.allocate() for _ in range(3)]
    for gsi in gsis:
        routes.set_msi(gsi, LAPIC, 0, gsi)
    assert vm.tables == []
    routes.attach(gsis[0], EVENTFD)
    assert vm.tables == [(MsiRoute(gsis[0], LAPIC, gsis[0]),)]
    assert vm.irqfds == {(gsis[0], EVENTFD)}


def test_attached_route_changes_at_once_and_only_if_it_differs(
    vm: FakeVm, routes: IrqRoutes
) -> None:
    gsi = routes.allocate()
    routes.set_msi(gsi, LAPIC, 0, 0x41)
    routes.attach(gsi, EVENTFD)
    routes.set_msi(gsi, LAPIC, 0, 0x41)
    routes.set_msi(gsi, LAPIC + 0x1000, 1, 0x42)
    assert vm.tables[1:] == [(MsiRoute(gsi, 1 << 32 | LAPIC + 0x1000, 0x42),)]


def test_mask_and_unmask_need_no_new_table(vm: FakeVm, routes: IrqRoutes) -> None:
    gsi = routes.allocate()
    routes.set_msi(gsi, LAPIC, 0, 0x41)
    for _ in range(3):
        routes.attach(gsi, EVENTFD)
        routes.detach(gsi, EVENTFD)
    assert len(vm.tables) == 1
    assert vm.irqfds == set()


def test_refused_message_hurts_nobody_else(vm: FakeVm, routes: IrqRoutes) -> None:
    bad, good = routes.allocate(), routes.allocate()
    routes.set_msi(bad, LAPIC, 0, REFUSED_DATA)
    routes.set_msi(good, LAPIC, 0, 0x41)
    with pytest.raises(HostError, match="KVM_SET_GSI_ROUTING"):
        routes.attach(bad, EVENTFD)
    routes.attach(good, EVENTFD)
    assert vm.irqfds == {(good, EVENTFD)}


def test_refused_change_keeps_the_old_route(vm: FakeVm, routes: IrqRoutes) -> None:
    gsi, other = routes.allocate(), routes.allocate()
    routes.set_msi(gsi, LAPIC, 0, 0x41)
    routes.attach(gsi, EVENTFD)
    with pytest.raises(HostError, match="KVM_SET_GSI_ROUTING"):
        routes.set_msi(gsi, LAPIC, 0, REFUSED_DATA)
    routes.set_msi(other, LAPIC, 0, 0x42)
    routes.attach(other, EVENTFD)
    assert vm.tables[-1] == (MsiRoute(gsi, LAPIC, 0x41), MsiRoute(other, LAPIC, 0x42))


def test_free_detaches_and_forgets(vm: FakeVm, routes: IrqRoutes) -> None:
    gsi, other = routes.allocate(), routes.allocate()
    routes.set_msi(gsi, LAPIC, 0, 0x41)
    routes.attach(gsi, EVENTFD)
    routes.free(gsi)
    assert vm.irqfds == set()
    routes.set_msi(other, LAPIC, 0, 0x42)
    routes.attach(other, EVENTFD)
    assert vm.tables[-1] == (MsiRoute(other, LAPIC, 0x42),)


def test_detach_of_what_is_not_attached_is_harmless(vm: FakeVm, routes: IrqRoutes) -> None:
    routes.detach(IOAPIC_PINS, EVENTFD)
    assert vm.irqfds == set()


def test_line_only_tells_kvm_of_changes(vm: FakeVm) -> None:
    line = KvmIrqLine(vm, 4)
    for asserted in (False, True, True, False, False):
        line.set_level(asserted)
    assert vm.levels == [(4, True), (4, False)]


def test_shared_line_stays_up_while_any_device_asserts(vm: FakeVm) -> None:
    shared = SharedIrqLine(KvmIrqLine(vm, 10))
    first, second = shared.add_source(), shared.add_source()
    first.set_level(True)
    second.set_level(True)
    first.set_level(False)
    assert vm.levels == [(10, True)]
    second.set_level(False)
    assert vm.levels == [(10, True), (10, False)]
