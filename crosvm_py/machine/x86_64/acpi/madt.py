# SPDX-License-Identifier: BSD-3-Clause
"""The contents of the MADT: the CPUs and the interrupt controllers (ACPI 6.5 §5.2.12)."""

from __future__ import annotations

from struct import pack

from crosvm_py.machine.x86_64 import layout
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

# ISA lines are edge-triggered, active high unless an override says otherwise.
_PCAT_COMPAT: Final = 1 << 0
_APIC_ENABLED: Final = 1 << 0
_APIC_ONLINE_CAPABLE: Final = 1 << 1
_CONFORMS_TO_BUS: Final = 0x0
_LEVEL_ACTIVE_HIGH: Final = 0xD
_LEVEL_ACTIVE_LOW: Final = 0xF
FIRST_X2APIC_ID: Final = 255
_ALL_PROCESSORS: Final = 0xFF
_NMI_LINT: Final = 1
IOAPIC_ID: Final = 0  # the id of the in-kernel IOAPIC after reset


class AcpiCpu(NamedTuple):
    """A CPU with its number, for AML, and its APIC id; one that is not enabled may come later.

    ``node`` is its NUMA node, if the guest has any.
    """

    number: int
    apic_id: int
    enabled: bool = True
    node: int | None = None


def contiguous_cpus(count: int) -> list[AcpiCpu]:
    """Return ``count`` CPUs that are there, with APIC ids from 0 up."""
    return [AcpiCpu(number, number) for number in range(count)]


def madt_body(cpus: Iterable[AcpiCpu]) -> bytes:
    """Return the interrupt controllers: a local APIC for each CPU, and one IOAPIC.

    ISA lines are the IOAPIC's pins of the same number, as KVM wires them. So there is no
    override for the timer, which a PC has on pin 2.
    """
    entries = [pack("<II", layout.LAPIC_GPA, _PCAT_COMPAT)]
    entries += [local_apic(cpu) for cpu in cpus]
    entries.append(pack("<BBBBII", 1, 12, IOAPIC_ID, 0, layout.IOAPIC_GPA, 0))
    entries.append(_override(layout.SCI_IRQ, layout.SCI_IRQ, _LEVEL_ACTIVE_HIGH))
    # PCI lines are level-triggered and active low, unlike ISA's. Told so here, a kernel programs
    # them only once.
    entries += [_override(gsi, gsi, _LEVEL_ACTIVE_LOW) for gsi in layout.PCI_INTX_GSIS]
    entries.append(pack("<BBBHB", 4, 6, _ALL_PROCESSORS, _CONFORMS_TO_BUS, _NMI_LINT))
    return b"".join(entries)


def local_apic(cpu: AcpiCpu) -> bytes:
    """Return the entry of one CPU (§5.2.12.2, and §5.2.12.12 for ids of more than 8 bits)."""
    flags = _APIC_ENABLED if cpu.enabled else _APIC_ONLINE_CAPABLE
    if cpu.apic_id < FIRST_X2APIC_ID:
        return pack("<BBBBI", 0, 8, cpu.number, cpu.apic_id, flags)
    return pack("<BBHIII", 9, 16, 0, cpu.apic_id, flags, cpu.number)


def _override(isa_irq: int, gsi: int, flags: int) -> bytes:
    return pack("<BBBBIH", 2, 10, 0, isa_irq, gsi, flags)
