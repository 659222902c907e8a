# SPDX-License-Identifier: BSD-3-Clause
"""The MP table, for kernels without ACPI (Intel MultiProcessor Specification 1.4, chapter 4)."""

from __future__ import annotations

from struct import Struct, pack

from crosvm_py.config import MAX_CPUS
from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi.madt import IOAPIC_ID
from crosvm_py.machine.x86_64.acpi.tables import checksum
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.machine.x86_64.regs import MemoryWriter

POINTER: Final = Struct("<4sIBBBBBBBB")
HEADER: Final = Struct("<4sHBB8s12sIHHIHBB")
PROCESSOR: Final = Struct("<BBBBIIII")
_SPEC_REVISION: Final = 4
_CHECKSUM_OFFSET: Final = 7
_POINTER_CHECKSUM_OFFSET: Final = 10

_PCI_BUS: Final = 0  # the source bus id is PCI's bus number
_ISA_BUS: Final = 1
_LAPIC_VERSION: Final = 0x14
_IOAPIC_VERSION: Final = 0x11
_CPU_ENABLED: Final = 1 << 0
_CPU_IS_BOOT_CPU: Final = 1 << 1
# A family 6 CPU with FPU and APIC; kernels use CPUID for the real values.
_CPU_SIGNATURE: Final = 0x600
_CPU_FEATURES: Final = 0x201
_IOAPIC_ENABLED: Final = 1

# Interrupt types; flags 0 means "as is usual on the bus".
_INT: Final = 0
_NMI: Final = 1
_EXT_INT: Final = 3
_AS_ON_BUS: Final = 0
_ALL_LAPICS: Final = 0xFF
_ISA_IRQS: Final = 16
_PIC_CASCADE_IRQ: Final = 2


def build_mptable(apic_ids: Sequence[int]) -> bytes:
    """Return the configuration table of a machine whose CPUs have these APIC ids, 0 first."""
    if not 0 < len(apic_ids) <= MAX_CPUS:
        raise ValueError(f"{len(apic_ids)} CPUs, the MP table holds 1 to {MAX_CPUS}")
    entries = [_processor(apic_id) for apic_id in apic_ids]
    entries.append(pack("<BB6s", 1, _PCI_BUS, b"PCI   "))
    entries.append(pack("<BB6s", 1, _ISA_BUS, b"ISA   "))
    entries.append(
        pack("<BBBBI", 2, IOAPIC_ID, _IOAPIC_VERSION, _IOAPIC_ENABLED, layout.IOAPIC_GPA)
    )
    entries += _isa_interrupts()
    entries += _pci_interrupts()
    entries.append(_interrupt(4, _EXT_INT, _ISA_BUS, 0, _ALL_LAPICS, 0))
    entries.append(_interrupt(4, _NMI, _ISA_BUS, 0, _ALL_LAPICS, 1))

    body = b"".join(entries)
    header = HEADER.pack(
        b"PCMP", HEADER.size + len(body), _SPEC_REVISION, 0, b"CROSVM  ", b"CROSVM-PY   ", 0, 0,
        len(entries), layout.LAPIC_GPA, 0, 0, 0,
    )  # fmt: skip
    table = bytearray(header + body)
    table[_CHECKSUM_OFFSET] = checksum(table)
    return bytes(table)


def _processor(apic_id: int) -> bytes:
    flags = _CPU_ENABLED | (0 if apic_id else _CPU_IS_BOOT_CPU)
    return PROCESSOR.pack(0, apic_id, _LAPIC_VERSION, flags, _CPU_SIGNATURE, _CPU_FEATURES, 0, 0)


def _interrupt(entry: int, kind: int, bus: int, source: int, apic: int, pin: int) -> bytes:
    return pack("<BBHBBBB", entry, kind, _AS_ON_BUS, bus, source, apic, pin)


def _isa_interrupts() -> list[bytes]:
    return [
        _interrupt(3, _INT, _ISA_BUS, irq, IOAPIC_ID, irq)
        for irq in range(_ISA_IRQS)
        if irq != _PIC_CASCADE_IRQ and irq not in layout.PCI_INTX_GSIS
    ]


def _pci_interrupts() -> list[bytes]:
    return [
        _interrupt(3, _INT, _PCI_BUS, slot << 2 | pin, IOAPIC_ID, layout.pci_intx_gsi(slot, pin))
        for slot in range(layout.PCI_SLOTS)
        for pin in range(layout.PCI_PINS)
    ]


def build_pointer(table_gpa: int) -> bytes:
    """Return the floating pointer structure, through which kernels find the table."""
    pointer = bytearray(POINTER.pack(b"_MP_", table_gpa, 1, _SPEC_REVISION, 0, 0, 0, 0, 0, 0))
    pointer[_POINTER_CHECKSUM_OFFSET] = checksum(pointer)
    return bytes(pointer)


def write_mptable(memory: MemoryWriter, apic_ids: Sequence[int]) -> None:
    """Write the table and its pointer at the end of the first 640 KiB."""
    table = build_mptable(apic_ids)
    end = layout.MPTABLE_GPA + len(table)
    if end > layout.MPTABLE_POINTER_GPA:
        raise ValueError(f"the MP table ends at {end:#x}, in the pointer's place")
    memory.write(layout.MPTABLE_GPA, table)
    memory.write(layout.MPTABLE_POINTER_GPA, build_pointer(layout.MPTABLE_GPA))
