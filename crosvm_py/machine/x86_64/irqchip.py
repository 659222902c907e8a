# SPDX-License-Identifier: BSD-3-Clause
"""The wiring of the PC's interrupt controllers in KVM: two PICs and an IOAPIC."""

from __future__ import annotations

from crosvm_py.machine.irq_routes import ChipWiring
from kvm.vm import ChipRoute
from kvm.x86_64 import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from sys_util.typing import Final

IOAPIC_PINS: Final = 24
PIC_PINS: Final = 8


def chip_wiring() -> ChipWiring:
    """Return KVM's own wiring: GSI n to pin n of the IOAPIC, and the first 16 to the PICs, too."""
    master = [ChipRoute(gsi, KVM_IRQCHIP_PIC_MASTER, gsi) for gsi in range(PIC_PINS)]
    slave = [
        ChipRoute(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS)
        for gsi in range(PIC_PINS, 2 * PIC_PINS)
    ]
    ioapic = [ChipRoute(gsi, KVM_IRQCHIP_IOAPIC, gsi) for gsi in range(IOAPIC_PINS)]
    return ChipWiring(IOAPIC_PINS, (*master, *slave, *ioapic))
