# SPDX-License-Identifier: BSD-3-Clause
"""The x86-64 machine's address map: guest-physical memory, I/O ports and interrupt lines.

Addresses are those of crosvm wherever crosvm has the same device, so that guests built for crosvm
find devices where they expect them. This module has only the numbers; the modules that use them
explain the devices.
"""

from __future__ import annotations

from crosvm_py.config import DIMM_STEP_BYTES, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES
from devices import legacy_ports
from devices.legacy_ports import ACPI_PM1_EVENT_PORT as ACPI_PM1_EVENT_PORT
from devices.legacy_ports import CMOS_PORT as CMOS_PORT
from devices.legacy_ports import CMOS_PORT_COUNT as CMOS_PORT_COUNT
from devices.legacy_ports import DEBUGCON_PORT as DEBUGCON_PORT
from devices.legacy_ports import I8042_PORT as I8042_PORT
from devices.legacy_ports import I8042_PORT_COUNT as I8042_PORT_COUNT
from devices.legacy_ports import PCI_CONFIG_PORT as PCI_CONFIG_PORT
from devices.legacy_ports import PCI_CONFIG_PORT_COUNT as PCI_CONFIG_PORT_COUNT
from devices.legacy_ports import PVPANIC_PORT as PVPANIC_PORT
from kernel_loader.boot_params import E820_RAM, E820_RESERVED, E820Entry
from kernel_loader.load import BootLayout
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE_BYTES: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# Memory below 1 MiB: descriptor and page tables, the data of the loader, MP and ACPI tables.
GDT_GPA: Final = 0x1500
IDT_GPA: Final = 0x1528
START_INFO_GPA: Final = 0x6000
ZERO_PAGE_GPA: Final = 0x7000
BOOT_STACK_TOP: Final = 0x8000
PML4_GPA: Final = 0x9000
PDPTE_GPA: Final = 0xA000
PDE_GPA: Final = 0xB000  # four pages: 4 GiB in 2 MiB pages
CMDLINE_GPA: Final = 0x2_0000
CMDLINE_MAX_BYTES: Final = 0x800
SETUP_DATA_GPA: Final = CMDLINE_GPA + CMDLINE_MAX_BYTES
# crosvm starts the MP table at 0x9E800, which holds 254 CPUs but not 32 PCI slots as well.
MPTABLE_GPA: Final = 0x9_E000
MPTABLE_POINTER_GPA: Final = 0x9_FC00  # the last KiB of 640 KiB, where kernels look for it
LOW_RAM_END: Final = 0xA_0000
ACPI_RSDP_GPA: Final = 0xE_0000
ACPI_END: Final = 0xF_8000  # SMBIOS may follow
HIGH_MEMORY_START: Final = 0x10_0000
KERNEL_GPA: Final = 0x20_0000

# Memory from 1 MiB up.
MMIO_HOLE_START: Final = 0xD000_0000
PCI_MMIO_GPA: Final = MMIO_HOLE_START
PCI_MMIO_BYTES: Final = 0x2400_0000
ECAM_GPA: Final = 0xF400_0000
# Space for one bus, since there is only one. Linux probes every slot of each bus named here, with
# two exits per slot; with 64 buses that was 4,000 of the 5,800 exits to us in a boot.
ECAM_BYTES: Final = 0x10_0000
PCI_BUSES: Final = ECAM_BYTES >> 20
# Each PCI segment has an ECAM behind that of the one before it, and a part of the hole for BARs.
# Only where devices can be plugged in.
PCI_HOTPLUG_GPA: Final = 0xFEA0_0000
GED_GPA: Final = 0xFEA0_0010
CPU_HOTPLUG_GPA: Final = 0xFEA0_0020
MEMORY_HOTPLUG_GPA: Final = 0xFEA0_0040
# Only with a watchdog.
WATCHDOG_GPA: Final = 0xFEA0_0060
IOAPIC_GPA: Final = 0xFEC0_0000
LAPIC_GPA: Final = 0xFEE0_0000
IDENTITY_MAP_GPA: Final = 0xFEFF_C000
TSS_GPA: Final = 0xFEFF_D000  # three pages
TSS_BYTES: Final = 0x3000
MMIO_HOLE_END: Final = 4 * GIB

# I/O ports, beside those that are imported.
COM_PORTS: Final = tuple(com.port for com in legacy_ports.COM_PORTS.values())
COM_PORT_COUNT: Final = legacy_ports.COM_PORT_LENGTH
ACPI_PM1_EVENT_BYTES: Final = 4
ACPI_PM1_CONTROL_PORT: Final = 0x604
ACPI_PM1_CONTROL_BYTES: Final = 2
RESET_PORT: Final = 0xCF9
RESET_VALUE: Final = 0x06

# Interrupt lines (GSIs). Each is the IOAPIC's pin of the same number. That includes line 0 of the
# PIT, which a PC has on pin 2. GSIs from 24 up are for message-signalled interrupts.
COM_IRQS: Final = tuple(com.irq for com in legacy_ports.COM_PORTS.values())
CMOS_IRQ: Final = 8
SCI_IRQ: Final = 9
GED_GSI: Final = 16
PCI_INTX_GSIS: Final = (10, 11)
PCI_SLOTS: Final = 32
FIRST_DEVICE_SLOT: Final = 1  # slot 0 of segment 0 is the host bridge
PCI_PINS: Final = 4

# Each block of virtio-mem is a slot of KVM, which has 32764 of them at most.
_MOST_BLOCKS: Final = 8192
_HOT_GAP_BYTES: Final = DIMM_STEP_BYTES

BOOT_LAYOUT: Final = BootLayout(
    zero_page_gpa=ZERO_PAGE_GPA,
    start_info_gpa=START_INFO_GPA,
    start_info_max_bytes=ZERO_PAGE_GPA - START_INFO_GPA,
    cmdline_gpa=CMDLINE_GPA,
    cmdline_max_bytes=CMDLINE_MAX_BYTES,
    setup_data_gpa=SETUP_DATA_GPA,
    setup_data_max_bytes=MPTABLE_GPA - SETUP_DATA_GPA,
    low_end=HIGH_MEMORY_START,
)


def pci_intx_gsi(slot: int, pin: int) -> int:
    """Return the line of a PCI slot's INTA# (``pin`` 0) to INTD# (3)."""
    return PCI_INTX_GSIS[(slot + pin) % len(PCI_INTX_GSIS)]


def pci_windows(weights: Sequence[int]) -> list[tuple[int, int]]:
    """Divide the hole among PCI segments by their weights; return (gpa, bytes) for each."""
    windows = []
    gpa = PCI_MMIO_GPA
    for weight in weights:
        size_bytes = PCI_MMIO_BYTES * weight // sum(weights) // MIB * MIB
        windows.append((gpa, size_bytes))
        gpa += size_bytes
    return windows


def ram_ranges(memory_bytes: int) -> list[tuple[int, int]]:
    """Return guest memory as (gpa, bytes): one range below the PCI hole, one from 4 GiB up.

    Raises:
        ConfigError: the size is no multiple of a page, or beyond the limits.
    """
    if memory_bytes % PAGE_BYTES:
        raise ConfigError(f"memory of {memory_bytes:#x} bytes is no multiple of {PAGE_BYTES:#x}")
    if not MIN_MEMORY_BYTES <= memory_bytes <= MAX_MEMORY_BYTES:
        raise ConfigError(
            f"memory of {memory_bytes:#x} bytes, not {MIN_MEMORY_BYTES:#x} to {MAX_MEMORY_BYTES:#x}"
        )
    low_bytes = min(memory_bytes, MMIO_HOLE_START)
    ranges = [(0, low_bytes)]
    if memory_bytes > low_bytes:
        ranges.append((MMIO_HOLE_END, memory_bytes - low_bytes))
    return ranges


def plugged_block_bytes(hot_bytes: int) -> int:
    """Return the size of virtio-mem's blocks: 2 MiB, or more where there would be too many."""
    block_bytes = 2 * MIB
    while hot_bytes > _MOST_BLOCKS * block_bytes:
        block_bytes *= 2
    return block_bytes


def hot_ranges(memory_bytes: int, hot_bytes: int, block_bytes: int) -> list[tuple[int, int, int]]:
    """Return the (gpa, bytes, block_bytes) of ``hot_bytes`` that can come later, if any.

    They are above all other memory and never adjacent to it: no buffer of a driver goes over the
    border.

    Raises:
        ConfigError: they are not whole blocks, or too many.
    """
    if not hot_bytes:
        return []
    if hot_bytes % block_bytes:
        raise ConfigError(
            f"memory that can be added, {hot_bytes:#x} bytes, is no multiple of {block_bytes:#x}"
        )
    if memory_bytes + hot_bytes > MAX_MEMORY_BYTES:
        raise ConfigError(
            f"memory of {memory_bytes:#x} bytes and {hot_bytes:#x} that can be added are more than "
            f"{MAX_MEMORY_BYTES:#x}"
        )
    gpa, size_bytes = ram_ranges(memory_bytes)[-1]
    end = max(MMIO_HOLE_END, gpa + size_bytes + _HOT_GAP_BYTES)
    return [(-(-end // GIB) * GIB, hot_bytes, block_bytes)]


def e820(memory_bytes: int, segments: int = 1) -> list[E820Entry]:
    """Return the memory map that is passed to a guest with so many PCI segments.

    Raises:
        ConfigError: as ``ram_ranges``.
    """
    (_, low_bytes), *high = ram_ranges(memory_bytes)
    legacy_bytes = HIGH_MEMORY_START - LOW_RAM_END
    return [
        E820Entry(0, LOW_RAM_END, E820_RAM),
        E820Entry(LOW_RAM_END, legacy_bytes, E820_RESERVED),
        E820Entry(HIGH_MEMORY_START, low_bytes - HIGH_MEMORY_START, E820_RAM),
        E820Entry(ECAM_GPA, segments * ECAM_BYTES, E820_RESERVED),
        E820Entry(IDENTITY_MAP_GPA, PAGE_BYTES + TSS_BYTES, E820_RESERVED),
        *(E820Entry(gpa, size_bytes, E820_RAM) for gpa, size_bytes in high),
    ]
