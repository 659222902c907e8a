# SPDX-License-Identifier: BSD-3-Clause
"""The notes about vCPUs in an ELF core file, as readelf, gdb and crash read them."""

from __future__ import annotations

from struct import Struct

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvm._kvm import kvm_regs, kvm_segment, kvm_sregs
    from kvm.x86_64 import X86Vcpu

_NT_PRSTATUS: Final = 1
_QEMU_CPU_STATE: Final = 0
_QEMU_VERSION: Final = 1
_MSR_KERNEL_GS_BASE: Final = 0xC000_0102

_NOTE: Final = Struct("<III8s")
# struct elf_prstatus: only the id of the "process", which is that of the vCPU, and its registers.
_PRSTATUS: Final = Struct("<32xI12x64x27Q8x")
# struct QEMUCPUState of QEMU's target/i386/arch_dump.c, in three parts.
_QEMU_SEGMENT: Final = Struct("<IIIIQ")
_QEMU_HEAD: Final = Struct("<II18Q")
_QEMU_TAIL: Final = Struct("<6Q")


def core_notes(vcpu: X86Vcpu) -> bytes:
    """Return the notes about a vCPU, which is paused: its registers, and what QEMU notes beside.

    Raises:
        HostError: KVM does not tell its registers.
    """
    regs, sregs = vcpu.regs(), vcpu.sregs()
    kernel_gs = vcpu.msr(_MSR_KERNEL_GS_BASE) or 0
    status = _PRSTATUS.pack(vcpu.index + 1, *_user_regs(regs, sregs))
    state = _qemu_state(regs, sregs, kernel_gs)
    return _note(b"CORE", _NT_PRSTATUS, status) + _note(b"QEMU", _QEMU_CPU_STATE, state)


def _note(name: bytes, kind: int, text: bytes) -> bytes:
    return _NOTE.pack(len(name) + 1, len(text), kind, name) + text


def _user_regs(regs: kvm_regs, sregs: kvm_sregs) -> tuple[int, ...]:
    """Return the registers in the order of ``struct user_regs_struct``."""
    return (
        *(regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10),
        *(regs.r9, regs.r8, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rax),
        *(regs.rip, sregs.cs.selector, regs.rflags, regs.rsp, sregs.ss.selector),
        *(sregs.fs.base, sregs.gs.base),
        *(sregs.ds.selector, sregs.es.selector, sregs.fs.selector, sregs.gs.selector),
    )


def _qemu_state(regs: kvm_regs, sregs: kvm_sregs, kernel_gs: int) -> bytes:
    plain = (
        *(regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp),
        *(regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15),
        *(regs.rip, regs.rflags),
    )
    segments = b"".join(
        _QEMU_SEGMENT.pack(each.selector, each.limit, _flags(each), 0, each.base)
        for each in (
            sregs.cs,
            sregs.ds,
            sregs.es,
            sregs.fs,
            sregs.gs,
            sregs.ss,
            sregs.ldt,
            sregs.tr,
        )
    )
    segments += b"".join(
        _QEMU_SEGMENT.pack(0, table.limit, 0, 0, table.base) for table in (sregs.gdt, sregs.idt)
    )
    size_bytes = _QEMU_HEAD.size + len(segments) + _QEMU_TAIL.size
    tail = _QEMU_TAIL.pack(sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4, kernel_gs)
    return _QEMU_HEAD.pack(_QEMU_VERSION, size_bytes, *plain) + segments + tail


def _flags(segment: kvm_segment) -> int:
    """Return the flags of a segment at the places of the second word of its descriptor."""
    bits = (
        *((segment.type, 8), (segment.s, 12), (segment.dpl, 13), (segment.present, 15)),
        *((segment.avl, 20), (segment.l, 21), (segment.db, 22), (segment.g, 23)),
    )
    return sum(value << at for value, at in bits)
