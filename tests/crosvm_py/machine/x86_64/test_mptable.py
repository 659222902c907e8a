# SPDX-License-Identifier: BSD-3-Clause
"""The MP table, read back as the specification says."""

from __future__ import annotations

from struct import unpack_from

import pytest

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.mptable import HEADER, build_mptable, write_mptable
from tests.crosvm_py.machine.x86_64.low_memory import LowMemory

ENTRY_BYTES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries_of(table: bytes) -> list[bytes]:
    entries, at = [], HEADER.size
    while at < len(table):
        size = ENTRY_BYTES[table[at]]
        entries.append(table[at : at + size])
        at += size
    assert at == len(table)
    return entries


@pytest.mark.parametrize("cpus", [1, 2, 254])
def test_write_mptable_is_found_by_its_pointer(cpus: int) -> None:
    ram = LowMemory()
    write_mptable(ram, range(cpus))
    at = next(gpa for gpa in range(639 * 1024, 640 * 1024, 16) if ram.read(gpa, 4) == b"_MP_")
    pointer = ram.read(at, 16)
    assert sum(pointer) % 256 == 0
    assert pointer[8:10] == bytes([1, 4])
    (table_gpa,) = unpack_from("<I", pointer, 4)
    (length,) = unpack_from("<H", ram.content, table_gpa + 4)
    table = ram.read(table_gpa, length)
    assert table[:4] == b"PCMP"
    assert sum(table) % 256 == 0
    assert table_gpa + length <= at
    assert unpack_from("<H", table, 34) == (len(entries_of(table)),)
    assert unpack_from("<I", table, 36) == (layout.LAPIC_GPA,)


def test_mptable_has_one_boot_cpu_and_unique_ids() -> None:
    cpus = [entry for entry in entries_of(build_mptable(range(254))) if entry[0] == 0]
    assert [entry[1] for entry in cpus] == list(range(254))
    assert [entry[3] for entry in cpus] == [3] + [1] * 253


def test_mptable_wires_isa_and_pci_lines_to_different_pins() -> None:
    table = build_mptable([0])
    lines = [unpack_from("<BHBBBB", entry, 1) for entry in entries_of(table) if entry[0] == 3]
    isa = {source: pin for kind, flags, bus, source, apic, pin in lines if bus == 1}
    pci = {source: pin for kind, flags, bus, source, apic, pin in lines if bus == 0}
    assert isa == {irq: irq for irq in range(16) if irq not in (2, 10, 11)}
    assert pci[0 << 2 | 0] == layout.pci_intx_gsi(0, 0)
    assert pci[5 << 2 | 2] == layout.pci_intx_gsi(5, 2)
    assert len(pci) == 128
    assert set(pci.values()) == {10, 11}


def test_mptable_buses_and_local_interrupts() -> None:
    entries = entries_of(build_mptable([0]))
    assert [entry[1:] for entry in entries if entry[0] == 1] == [b"\0PCI   ", b"\1ISA   "]
    local = [unpack_from("<BHBBBB", entry, 1) for entry in entries if entry[0] == 4]
    assert local == [(3, 0, 1, 0, 0xFF, 0), (1, 0, 1, 0, 0xFF, 1)]


@pytest.mark.parametrize("cpus", [0, 255])
def test_mptable_cpu_count_is_bounded(cpus: int) -> None:
    with pytest.raises(ValueError, match=f"{cpus} CPUs, the MP table holds 1 to 254"):
        build_mptable(range(cpus))
