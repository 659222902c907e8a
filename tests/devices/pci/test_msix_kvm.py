# SPDX-License-Identifier: BSD-3-Clause
"""What MSI-X relies on, asked of the kernel itself: irqfds, routes and what they do to eventfds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crosvm_py.machine.irq_routes import IrqRoutes
from crosvm_py.machine.x86_64.irqchip import chip_wiring
from devices.pci.config_space import ConfigSpace, PciIdentity
from devices.pci.msix import MSIX_ENABLE, Msix
from kvm.vm import Kvm
from kvm.x86_64 import X86Vm
from tests.devices.fakes import readable

pytestmark = pytest.mark.kvm


@pytest.fixture
def msix() -> Iterator[Msix]:
    with_kvm = Kvm.open()
    vm = with_kvm.create_vm(X86Vm)
    vm.create_irqchip()
    space = ConfigSpace(PciIdentity(1, 2, 3))
    msix = Msix(2, IrqRoutes(vm, chip_wiring()))
    msix.add_capability(space, 0, 0, 0x1000)
    space.on_write(msix.control_register, 2, lambda: msix.update(bus_master=True))
    space.write(msix.control_register, 2, MSIX_ENABLE)
    yield msix
    msix.close()
    vm.close()
    with_kvm.close()


def program(msix: Msix, vector: int, *, address_hi: int = 0, masked: bool = False) -> None:
    for at, value in enumerate((0xFEE0_0000, address_hi, 0x41, int(masked))):
        msix.table.write(16 * vector + 4 * at, 4, value)


def test_attached_vector_is_consumed_by_kvm(msix: Msix) -> None:
    program(msix, 0)
    msix.signal(0)
    assert not readable(msix.eventfd(0))
    assert msix.pending() == 0


def test_masked_vector_is_pending_and_attaching_settles_it(msix: Msix) -> None:
    program(msix, 0, masked=True)
    msix.signal(0)
    assert msix.pending() == 1
    program(msix, 0)
    assert msix.pending() == 0
    program(msix, 0, masked=True)
    assert msix.pending() == 0, "an interrupt that KVM delivered became pending again"


def test_message_that_kvm_refuses_hurts_nobody_else(msix: Msix) -> None:
    program(msix, 1, address_hi=0xFFFF_FFFF)
    program(msix, 0)
    msix.signal(0)
    assert not readable(msix.eventfd(0))
