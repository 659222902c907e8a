# SPDX-License-Identifier: BSD-3-Clause
"""The registers with which the boot processor enters a kernel.

Three states, by the kernel's entry: long mode with identity-mapped memory (Linux 64-bit boot
protocol), and flat protected mode without paging (Linux 32-bit boot protocol, PVH). The other
processors stay as KVM made them, waiting for the start-up IPI that the kernel will send.
"""

from __future__ import annotations

import struct

from crosvm_py.machine.x86_64.layout import BOOT_STACK_TOP, GDT_GPA, IDT_GPA, PAGE_BYTES, PML4_GPA
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing import Literal

    from kvm._kvm import kvm_regs, kvm_segment, kvm_sregs

# __BOOT_CS and __BOOT_DS of the Linux boot protocol; the task segment has no fixed place.
CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18
TASK_SELECTOR: Final = 0x20

CR0_PE: Final = 1 << 0
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
RFLAGS_RESERVED: Final = 1 << 1

_GDT_ENTRIES: Final = 5
_PRESENT_WRITABLE: Final = 0x3
_LARGE_PAGE: Final = 0x80
_LARGE_PAGE_BYTES: Final = 2 << 20
_IDENTITY_GIB: Final = 4

_LAPIC_LVT_LINT0: Final = 0x350
_LAPIC_LVT_LINT1: Final = 0x360
_LVT_MODE_MASK: Final = 0x700
_LVT_MODE_NMI: Final = 0x400
_LVT_MODE_EXTINT: Final = 0x700


class BootEntry(Protocol):
    """How the boot processor starts: ``kernel_loader``'s ``EntryPoint``."""

    @property
    def protocol(self) -> Literal["linux64", "linux32", "pvh"]:
        """Which of the three states the processor starts in."""
        ...

    @property
    def rip(self) -> int:
        """The first instruction's guest-physical address."""
        ...

    @property
    def boot_data_gpa(self) -> int:
        """The zero page (Linux), or the start info (PVH)."""
        ...


class BootVcpu(Protocol):
    """The part of a ``Vcpu`` for its registers."""

    def regs(self) -> kvm_regs:
        """Return the general registers."""
        ...

    def set_regs(self, regs: kvm_regs) -> None:
        """Set the general registers."""
        ...

    def sregs(self) -> kvm_sregs:
        """Return the segment and control registers."""
        ...

    def set_sregs(self, sregs: kvm_sregs) -> None:
        """Set the segment and control registers."""
        ...


class LapicVcpu(Protocol):
    """The part of a ``Vcpu`` for its local APIC."""

    def lapic(self) -> bytes:
        """Return the register page."""
        ...

    def set_lapic(self, registers: bytes) -> None:
        """Set the register page."""
        ...


class MemoryWriter(Protocol):
    """The part of guest memory that is needed here."""

    def write(self, gpa: int, data: bytes) -> None:
        """Store ``data`` at ``gpa``."""
        ...


class Segment(NamedTuple):
    """A segment descriptor, in the words of the processor manual (SDM volume 3 §3.4.5)."""

    selector: int
    type: int
    limit: int = 0xFFFF_FFFF
    long: int = 0
    big: int = 0
    code_or_data: int = 1

    def descriptor(self) -> int:
        """Return the 8 bytes of the descriptor table; the base is 0."""
        granular = self.limit > 0xFFFFF
        limit = self.limit >> 12 if granular else self.limit
        access = self.type | self.code_or_data << 4 | 1 << 7
        flags = self.long << 1 | self.big << 2 | granular << 3
        return limit & 0xFFFF | access << 40 | (limit >> 16) << 48 | flags << 52

    def load(self, register: kvm_segment) -> None:
        """Load the hidden part of a segment register as the processor would."""
        register.base = 0
        register.limit = self.limit
        register.selector = self.selector
        register.type = self.type
        register.present = 1
        register.dpl = 0
        register.db = self.big
        register.s = self.code_or_data
        register.l = self.long
        register.g = self.limit > 0xFFFFF
        register.unusable = 0


# The accessed bits are set; otherwise the processor would set them in the table itself.
CODE_64: Final = Segment(CODE_SELECTOR, 0xB, long=1)
CODE_32: Final = Segment(CODE_SELECTOR, 0xB, big=1)
DATA: Final = Segment(DATA_SELECTOR, 0x3, big=1)
TASK: Final = Segment(TASK_SELECTOR, 0xB, limit=0x67, code_or_data=0)


def configure_boot_vcpu(vcpu: BootVcpu, memory: MemoryWriter, entry: BootEntry) -> None:
    """Write the tables that ``entry`` needs into guest memory and set the registers.

    Raises:
        HostError: KVM refused the registers.
        GuestAddressError: guest memory lacks the low pages.
    """
    write_boot_tables(memory, entry)
    long_mode = entry.protocol == "linux64"
    sregs = vcpu.sregs()
    _load_segments(sregs, _code(entry), _GDT_ENTRIES * 8 - 1)
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE
    sregs.cr3 = 0
    sregs.cr4 = 0
    sregs.efer = 0
    if long_mode:
        sregs.cr0 |= CR0_PG
        sregs.cr3 = PML4_GPA
        sregs.cr4 = CR4_PAE
        sregs.efer = EFER_LME | EFER_LMA
    vcpu.set_sregs(sregs)
    _set_general_registers(vcpu, entry)


def write_boot_tables(memory: MemoryWriter, entry: BootEntry) -> None:
    """Write the descriptor and page tables with which ``entry`` starts.

    Raises:
        GuestAddressError: guest memory lacks the low pages.
    """
    table = (0, 0, _code(entry).descriptor(), DATA.descriptor(), TASK.descriptor())
    memory.write(GDT_GPA, struct.pack(f"<{_GDT_ENTRIES}Q", *table))
    if entry.protocol == "linux64":
        memory.write(PML4_GPA, identity_page_tables(PML4_GPA))


def _code(entry: BootEntry) -> Segment:
    return CODE_64 if entry.protocol == "linux64" else CODE_32


def _load_segments(sregs: kvm_sregs, code: Segment, table_limit: int) -> None:
    code.load(sregs.cs)
    for register in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        DATA.load(register)
    TASK.load(sregs.tr)
    sregs.gdt.base = GDT_GPA
    sregs.gdt.limit = table_limit
    # Kernels load their own table before an exception can occur. An earlier one triple-faults.
    sregs.idt.base = IDT_GPA
    sregs.idt.limit = 0


def _set_general_registers(vcpu: BootVcpu, entry: BootEntry) -> None:
    regs = vcpu.regs()
    for name in ("rax", "rbx", "rcx", "rdx", "rdi", "rsi", "rbp"):
        setattr(regs, name, 0)
    regs.rip = entry.rip
    regs.rflags = RFLAGS_RESERVED
    regs.rsp = BOOT_STACK_TOP
    if entry.protocol == "pvh":
        regs.rbx = entry.boot_data_gpa
    else:
        regs.rsi = entry.boot_data_gpa
    vcpu.set_regs(regs)


def identity_page_tables(gpa: int) -> bytes:
    """Return page tables for ``gpa`` that map the first 4 GiB to the same addresses.

    They are one PML4, one directory pointer table, and a directory of 2 MiB pages for each GiB.
    """
    pointers = gpa + PAGE_BYTES
    directories = pointers + PAGE_BYTES
    top = struct.pack("<Q", pointers | _PRESENT_WRITABLE)
    second = struct.pack(
        f"<{_IDENTITY_GIB}Q",
        *(directories + PAGE_BYTES * gib | _PRESENT_WRITABLE for gib in range(_IDENTITY_GIB)),
    )
    flags = _PRESENT_WRITABLE | _LARGE_PAGE
    pages = range(flags, flags + (_IDENTITY_GIB << 30), _LARGE_PAGE_BYTES)
    third = struct.pack(f"<{len(pages)}Q", *pages)
    return top.ljust(PAGE_BYTES, b"\0") + second.ljust(PAGE_BYTES, b"\0") + third


def set_local_interrupts(vcpu: LapicVcpu) -> None:
    """Wire the local APIC's two pins as on a PC: PIC interrupts on LINT0, NMI on LINT1."""
    registers = bytearray(vcpu.lapic())
    for offset, mode in (
        (_LAPIC_LVT_LINT0, _LVT_MODE_EXTINT),
        (_LAPIC_LVT_LINT1, _LVT_MODE_NMI),
    ):
        (entry,) = struct.unpack_from("<I", registers, offset)
        struct.pack_into("<I", registers, offset, entry & ~_LVT_MODE_MASK | mode)
    vcpu.set_lapic(bytes(registers))
