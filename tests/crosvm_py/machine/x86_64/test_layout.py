# SPDX-License-Identifier: BSD-3-Clause
"""The address map: nothing overlaps, and memory of any size is described right."""

from __future__ import annotations

from itertools import pairwise

import pytest

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.layout import GIB, MIB, e820, ram_ranges
from kernel_loader.boot_params import E820_RAM, E820_RESERVED
from sys_util.errors import ConfigError


@pytest.mark.parametrize(
    ("memory_bytes", "expected"),
    [
        pytest.param(128 * MIB, [(0, 128 * MIB)], id="small"),
        pytest.param(0xD000_0000, [(0, 0xD000_0000)], id="up-to-the-hole"),
        pytest.param(0xD000_1000, [(0, 0xD000_0000), (4 * GIB, 0x1000)], id="one-page-above"),
        pytest.param(5 * GIB, [(0, 0xD000_0000), (4 * GIB, 0x7000_0000)], id="5-gib"),
    ],
)
def test_ram_ranges_split_at_the_pci_hole(
    memory_bytes: int, expected: list[tuple[int, int]]
) -> None:
    assert ram_ranges(memory_bytes) == expected
    assert sum(size for _, size in expected) == memory_bytes


@pytest.mark.parametrize(
    ("memory_bytes", "reason"),
    [
        pytest.param(128 * MIB + 1, "0x8000001 bytes is no multiple of 0x1000", id="page"),
        pytest.param(0, "0x0 bytes, not 0x400000 to", id="zero"),
        pytest.param(MIB, "0x100000 bytes, not 0x400000 to", id="too-small"),
        pytest.param(-4096, "-0x1000 bytes, not", id="negative"),
        pytest.param(1 << 46, "0x400000000000 bytes, not", id="too-large"),
    ],
)
def test_ram_ranges_refuses_impossible_sizes(memory_bytes: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ram_ranges(memory_bytes)


@pytest.mark.parametrize("memory_bytes", [4 * MIB, 128 * MIB, 0xD000_0000, 5 * GIB])
def test_e820_covers_memory_without_overlap(memory_bytes: int) -> None:
    entries = e820(memory_bytes)
    for low, high in pairwise(entries):
        assert low.gpa + low.size_bytes <= high.gpa
    legacy_bytes = layout.HIGH_MEMORY_START - layout.LOW_RAM_END
    ram_bytes = sum(entry.size_bytes for entry in entries if entry.kind == E820_RAM)
    assert ram_bytes == memory_bytes - legacy_bytes


def test_e820_reserves_the_ecam() -> None:
    # Linux uses the memory-mapped configuration space only if the map reserves it.
    assert (layout.ECAM_GPA, layout.ECAM_BYTES, E820_RESERVED) in e820(128 * MIB)
    assert (layout.ECAM_GPA, 2 * layout.ECAM_BYTES, E820_RESERVED) in e820(128 * MIB, segments=2)


def test_window_of_one_segment_is_the_hole_and_several_divide_it_by_weight() -> None:
    assert layout.pci_windows((1,)) == [(layout.PCI_MMIO_GPA, layout.PCI_MMIO_BYTES)]
    windows = layout.pci_windows((2, 1, 3))
    sizes = [size_bytes for _gpa, size_bytes in windows]
    assert sizes == [192 * MIB, 96 * MIB, 288 * MIB]
    assert [gpa for gpa, _ in windows][1:] == [gpa + size for gpa, size in windows][:-1]


@pytest.mark.parametrize(
    "areas",
    [
        pytest.param(
            [
                (layout.GDT_GPA, 0x28),
                (layout.IDT_GPA, 8),
                (layout.START_INFO_GPA, layout.BOOT_LAYOUT.start_info_max_bytes),
                (layout.ZERO_PAGE_GPA, 0x1000),
                (layout.PML4_GPA, 0x1000),
                (layout.PDPTE_GPA, 0x1000),
                (layout.PDE_GPA, 0x4000),
                (layout.CMDLINE_GPA, layout.CMDLINE_MAX_BYTES),
                (layout.SETUP_DATA_GPA, layout.BOOT_LAYOUT.setup_data_max_bytes),
                (layout.MPTABLE_GPA, layout.MPTABLE_POINTER_GPA - layout.MPTABLE_GPA),
                (layout.MPTABLE_POINTER_GPA, 0x400),
                (layout.ACPI_RSDP_GPA, layout.ACPI_END - layout.ACPI_RSDP_GPA),
            ],
            id="low-memory",
        ),
        pytest.param(
            [
                (layout.PCI_MMIO_GPA, layout.PCI_MMIO_BYTES),
                (layout.ECAM_GPA, layout.ECAM_BYTES),
                (layout.IOAPIC_GPA, 0x1000),
                (layout.LAPIC_GPA, 0x1000),
                (layout.IDENTITY_MAP_GPA, 0x1000),
                (layout.TSS_GPA, layout.TSS_BYTES),
            ],
            id="mmio",
        ),
        pytest.param(
            sorted(
                [
                    *((port, layout.COM_PORT_COUNT) for port in layout.COM_PORTS),
                    (layout.I8042_PORT, layout.I8042_PORT_COUNT),
                    (layout.CMOS_PORT, layout.CMOS_PORT_COUNT),
                    (layout.DEBUGCON_PORT, 1),
                    (layout.PVPANIC_PORT, 1),
                    (layout.ACPI_PM1_EVENT_PORT, layout.ACPI_PM1_EVENT_BYTES),
                    (layout.ACPI_PM1_CONTROL_PORT, layout.ACPI_PM1_CONTROL_BYTES),
                    (layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORT_COUNT),
                ]
            ),
            id="ports",
        ),
    ],
)
def test_layout_areas_do_not_overlap(areas: list[tuple[int, int]]) -> None:
    for (low, size), (high, _) in pairwise(areas):
        assert low + size <= high


def test_pci_intx_lines_alternate_by_slot_and_pin() -> None:
    lines = [layout.pci_intx_gsi(slot, pin) for slot in (0, 1) for pin in range(4)]
    assert lines == [10, 11, 10, 11, 11, 10, 11, 10]


def test_interrupt_lines_are_not_shared_between_buses() -> None:
    isa = {layout.SCI_IRQ, layout.CMOS_IRQ, *layout.COM_IRQS}
    assert not isa & set(layout.PCI_INTX_GSIS)


@pytest.mark.parametrize(
    ("memory_bytes", "gpa"),
    [
        pytest.param(256 << 20, 4 << 30, id="all-below-the-hole"),
        pytest.param(layout.MMIO_HOLE_START, 4 << 30, id="up-to-the-hole"),
        pytest.param(8 << 30, 9 << 30, id="above-4-gib"),
        pytest.param(layout.MMIO_HOLE_START + (1 << 30) - 4096, 6 << 30, id="close-below-a-gib"),
    ],
)
def test_memory_that_comes_later_is_above_all_other_and_not_beside_it(
    memory_bytes: int, gpa: int
) -> None:
    step = 128 << 20
    assert layout.hot_ranges(memory_bytes, 3 * step, step) == [(gpa, 3 * step, step)]
    start, size = layout.ram_ranges(memory_bytes)[-1]
    assert gpa - (start + size) >= step


def test_memory_that_comes_later_and_cannot_be_is_refused() -> None:
    assert layout.hot_ranges(1 << 30, 0, 128 << 20) == []
    with pytest.raises(ConfigError, match="no multiple"):
        layout.hot_ranges(1 << 30, 1 << 20, 128 << 20)
    with pytest.raises(ConfigError, match="are more than"):
        layout.hot_ranges(1 << 30, 4 << 40, 128 << 20)
