# SPDX-License-Identifier: BSD-3-Clause
"""The boot processor's state, field by field, without KVM."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest

from crosvm_py.machine.x86_64 import regs as boot_regs
from crosvm_py.machine.x86_64.layout import GDT_GPA, IDT_GPA, PML4_GPA, ZERO_PAGE_GPA
from crosvm_py.machine.x86_64.regs import (
    CODE_32,
    CODE_64,
    DATA,
    TASK,
    configure_boot_vcpu,
    identity_page_tables,
    set_local_interrupts,
)
from kvm._kvm import ffi

if TYPE_CHECKING:
    from kvm._kvm import kvm_regs, kvm_sregs

ENTRY_RIP = 0x100_0200


class Entry(NamedTuple):
    protocol: Literal["linux64", "linux32", "pvh"]
    rip: int = ENTRY_RIP
    boot_data_gpa: int = ZERO_PAGE_GPA


class FakeVcpu:
    """Registers as KVM leaves them at reset, for what matters here."""

    index = 0

    def __init__(self) -> None:
        self._regs = ffi.new("struct kvm_regs *")
        self._regs.rdx = 0x600
        self._sregs = ffi.new("struct kvm_sregs *")
        self._sregs.cr0 = 0x6000_0010
        self._sregs.apic_base = 0xFEE0_0900
        self._sregs.cs.base = 0xFFFF_0000
        self._lapic = bytes(1024)

    def regs(self) -> kvm_regs:
        return self._regs

    def set_regs(self, regs: kvm_regs) -> None:
        self._regs = regs

    def sregs(self) -> kvm_sregs:
        return self._sregs

    def set_sregs(self, sregs: kvm_sregs) -> None:
        self._sregs = sregs

    def lapic(self) -> bytes:
        return self._lapic

    def set_lapic(self, registers: bytes) -> None:
        self._lapic = registers


class FakeMemory:
    def __init__(self) -> None:
        self.bytes = bytearray(0x10000)

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa : gpa + len(data)] = data

    def u64(self, gpa: int) -> int:
        return int.from_bytes(self.bytes[gpa : gpa + 8], "little")


def enter(protocol: Literal["linux64", "linux32", "pvh"]) -> tuple[FakeVcpu, FakeMemory]:
    vcpu, memory = FakeVcpu(), FakeMemory()
    configure_boot_vcpu(vcpu, memory, Entry(protocol))
    return vcpu, memory


def test_linux64_is_in_long_mode_with_the_zero_page_in_rsi() -> None:
    vcpu, _ = enter("linux64")
    sregs, regs = vcpu.sregs(), vcpu.regs()
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x8000_0031, PML4_GPA, 0x20, 0x500)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.selector) == (1, 0, 0x10)
    assert (regs.rip, regs.rsi, regs.rbx, regs.rdx) == (ENTRY_RIP, ZERO_PAGE_GPA, 0, 0)
    assert regs.rflags == 2
    assert sregs.apic_base == 0xFEE0_0900


@pytest.mark.parametrize(
    ("protocol", "rsi", "rbx"),
    [
        pytest.param("linux32", ZERO_PAGE_GPA, 0, id="linux32"),
        pytest.param("pvh", 0, ZERO_PAGE_GPA, id="pvh"),
    ],
)
def test_32bit_entries_are_flat_and_unpaged(
    protocol: Literal["linux32", "pvh"], rsi: int, rbx: int
) -> None:
    vcpu, memory = enter(protocol)
    sregs, regs = vcpu.sregs(), vcpu.regs()
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x31, 0, 0, 0)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.base, sregs.cs.limit) == (0, 1, 0, 0xFFFF_FFFF)
    assert (regs.rsi, regs.rbx, regs.rdi, regs.rbp) == (rsi, rbx, 0, 0)
    assert memory.u64(PML4_GPA) == 0


@pytest.mark.parametrize("name", ["ds", "es", "fs", "gs", "ss"])
def test_data_segments_are_flat_and_writable(name: str) -> None:
    vcpu, _ = enter("linux64")
    segment = getattr(vcpu.sregs(), name)
    assert (segment.base, segment.limit, segment.selector) == (0, 0xFFFF_FFFF, 0x18)
    assert (segment.type, segment.s, segment.present, segment.g) == (3, 1, 1, 1)
    assert segment.unusable == 0


def test_task_segment_is_busy_and_small() -> None:
    vcpu, _ = enter("pvh")
    task = vcpu.sregs().tr
    assert (task.type, task.s, task.limit, task.g, task.present) == (0xB, 0, 0x67, 0, 1)


def test_tables_agree_with_the_segment_registers() -> None:
    vcpu, memory = enter("linux64")
    sregs = vcpu.sregs()
    assert (sregs.gdt.base, sregs.gdt.limit) == (GDT_GPA, 39)
    assert (sregs.idt.base, sregs.idt.limit) == (IDT_GPA, 0)
    assert GDT_GPA + 40 <= IDT_GPA
    assert memory.u64(GDT_GPA) == 0
    assert memory.u64(GDT_GPA + sregs.cs.selector) == CODE_64.descriptor()
    assert memory.u64(GDT_GPA + sregs.ds.selector) == DATA.descriptor()
    assert memory.u64(GDT_GPA + sregs.tr.selector) == TASK.descriptor()


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        pytest.param(CODE_64, 0x00AF_9B00_0000_FFFF, id="code64"),
        pytest.param(CODE_32, 0x00CF_9B00_0000_FFFF, id="code32"),
        pytest.param(DATA, 0x00CF_9300_0000_FFFF, id="data"),
        pytest.param(TASK, 0x0000_8B00_0000_0067, id="task"),
    ],
)
def test_descriptors(segment: boot_regs.Segment, descriptor: int) -> None:
    assert segment.descriptor() == descriptor


def walk(tables: bytes, gpa: int, address: int) -> int:
    """Translate as the processor does, for 2 MiB pages only."""
    table = gpa
    for shift in (39, 30):
        at = table - gpa + 8 * (address >> shift & 511)
        (entry,) = struct.unpack_from("<Q", tables, at)
        assert entry & 3 == 3
        table = entry & ~0xFFF
    (entry,) = struct.unpack_from("<Q", tables, table - gpa + 8 * (address >> 21 & 511))
    assert entry & 0x83 == 0x83
    return int(entry & ~0x1FFFFF | address & 0x1FFFFF)


@pytest.mark.parametrize("address", [0, 0x1234, 0x20_0000, 0x4000_0000 - 1, 0xFEE0_00B0, 2**32 - 1])
def test_page_tables_map_the_first_4_gib_onto_themselves(address: int) -> None:
    tables = identity_page_tables(PML4_GPA)
    assert len(tables) == 6 * 4096
    assert walk(tables, PML4_GPA, address) == address


def test_local_interrupts_are_those_of_a_pc() -> None:
    vcpu = FakeVcpu()
    vcpu.set_lapic(struct.pack("<I", 0x1_0000) * 256)
    set_local_interrupts(vcpu)
    lint0, lint1 = (struct.unpack_from("<I", vcpu.lapic(), at)[0] for at in (0x350, 0x360))
    assert (lint0, lint1) == (0x1_0700, 0x1_0400)
    assert len(vcpu.lapic()) == 1024
