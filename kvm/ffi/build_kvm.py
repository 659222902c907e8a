# SPDX-License-Identifier: BSD-3-Clause
"""Build ``kvm._kvm``: the KVM ABI as the compiler finds it in ``<linux/kvm.h>``.

The declarations below only name fields and constants; sizes, offsets and ioctl numbers come from
the header. Calls go through small C functions in ``kvm.c``. Those that can fail return a negative
``errno``: cffi releases the GIL around a call, so ``errno`` itself may change before Python reads
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cffi import FFI

FOLDER: Final = Path(__file__).parent

STRUCTS: Final = """
struct kvm_userspace_memory_region {
    uint32_t slot; uint32_t flags; uint64_t guest_phys_addr; uint64_t memory_size;
    uint64_t userspace_addr; ...;
};
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rip, rflags; ...;
};
struct kvm_segment {
    uint64_t base; uint32_t limit; uint16_t selector; uint8_t type;
    uint8_t present, dpl, db, s, l, g, avl; uint8_t unusable; ...;
};
struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base; ...;
};
struct kvm_cpuid_entry2 {
    uint32_t function, index, flags, eax, ebx, ecx, edx; ...;
};
struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };
struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; ...; };
struct kvm_ioeventfd { uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
struct kvm_irq_routing_entry { uint32_t gsi, type, flags; ...; };
struct kvm_irq_routing { uint32_t nr; struct kvm_irq_routing_entry entries[]; ...; };
struct kvm_irq_level { uint32_t irq; uint32_t level; ...; };
struct kvm_pit_config { uint32_t flags; ...; };
struct kvm_reinject_control { uint8_t pit_reinject; ...; };
struct kvm_msi { uint32_t address_lo, address_hi, data, flags; ...; };
struct kvm_mp_state { uint32_t mp_state; ...; };
struct kvm_lapic_state { char regs[...]; ...; };
struct kvm_clock_data { uint64_t clock; uint32_t flags; ...; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; ...; };
struct kvm_vcpu_events { ...; };
struct kvm_xcrs { ...; };
struct kvm_xsave { ...; };
struct kvm_debugregs { ...; };
struct kvm_irqchip { uint32_t chip_id; ...; };
struct kvm_pit_state2 { ...; };
struct kvm_run { ...; };
"""

# The request numbers of the ioctls that we use.
IOCTLS: Final = """
KVM_GET_API_VERSION KVM_CREATE_VM KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE
KVM_GET_SUPPORTED_CPUID KVM_CREATE_VCPU KVM_SET_USER_MEMORY_REGION KVM_SET_TSS_ADDR
KVM_SET_IDENTITY_MAP_ADDR KVM_CREATE_IRQCHIP KVM_IRQ_LINE KVM_SET_GSI_ROUTING KVM_CREATE_PIT2
KVM_REINJECT_CONTROL KVM_SIGNAL_MSI
KVM_IRQFD KVM_IOEVENTFD KVM_SET_CLOCK KVM_GET_CLOCK KVM_RUN KVM_GET_REGS KVM_SET_REGS
KVM_GET_SREGS KVM_SET_SREGS KVM_GET_MSRS KVM_SET_MSRS KVM_GET_LAPIC KVM_SET_LAPIC KVM_SET_CPUID2
KVM_GET_MP_STATE KVM_SET_MP_STATE KVM_KVMCLOCK_CTRL KVM_GET_TSC_KHZ KVM_GET_MSR_INDEX_LIST
KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS KVM_GET_XCRS KVM_SET_XCRS KVM_GET_XSAVE KVM_SET_XSAVE
KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS KVM_GET_IRQCHIP KVM_SET_IRQCHIP KVM_GET_PIT2 KVM_SET_PIT2
"""

CONSTANTS: Final = """
KVM_API_VERSION KVM_CAP_IRQCHIP KVM_CAP_USER_MEMORY KVM_CAP_SET_TSS_ADDR KVM_CAP_EXT_CPUID
KVM_CAP_NR_VCPUS KVM_CAP_MAX_VCPUS KVM_CAP_MAX_VCPU_ID KVM_CAP_NR_MEMSLOTS KVM_CAP_MP_STATE
KVM_CAP_IRQ_ROUTING KVM_CAP_IRQFD KVM_CAP_IOEVENTFD KVM_CAP_IOEVENTFD_ANY_LENGTH KVM_CAP_PIT2
KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_ADJUST_CLOCK KVM_CAP_TSC_DEADLINE_TIMER
KVM_CAP_KVMCLOCK_CTRL KVM_CAP_IMMEDIATE_EXIT KVM_CAP_GET_TSC_KHZ KVM_MEM_LOG_DIRTY_PAGES
KVM_MEM_READONLY KVM_PIT_SPEAKER_DUMMY KVM_IRQFD_FLAG_DEASSIGN KVM_IOEVENTFD_FLAG_DATAMATCH
KVM_IOEVENTFD_FLAG_PIO KVM_IOEVENTFD_FLAG_DEASSIGN KVM_IRQCHIP_PIC_MASTER KVM_IRQCHIP_PIC_SLAVE
KVM_IRQCHIP_IOAPIC KVM_MP_STATE_RUNNABLE KVM_MP_STATE_UNINITIALIZED KVM_MP_STATE_INIT_RECEIVED
KVM_MP_STATE_HALTED KVM_MP_STATE_SIPI_RECEIVED KVM_CPUID_FLAG_SIGNIFCANT_INDEX KVM_EXIT_UNKNOWN
KVM_EXIT_EXCEPTION KVM_EXIT_IO KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG KVM_EXIT_HLT KVM_EXIT_MMIO
KVM_EXIT_IRQ_WINDOW_OPEN KVM_EXIT_SHUTDOWN KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_SET_TPR
KVM_EXIT_TPR_ACCESS KVM_EXIT_NMI KVM_EXIT_INTERNAL_ERROR KVM_EXIT_SYSTEM_EVENT KVM_EXIT_IOAPIC_EOI
KVM_EXIT_IO_IN KVM_EXIT_IO_OUT KVM_INTERNAL_ERROR_EMULATION KVM_INTERNAL_ERROR_SIMUL_EX
KVM_INTERNAL_ERROR_DELIVERY_EV KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON KVM_SYSTEM_EVENT_SHUTDOWN
KVM_SYSTEM_EVENT_RESET KVM_SYSTEM_EVENT_CRASH
"""

# Offsets in the shared ``struct kvm_run`` page, which Python reads through memoryviews.
RUN_OFFSETS: Final = {
    "RUN_IMMEDIATE_EXIT": "immediate_exit",
    "RUN_EXIT_REASON": "exit_reason",
    "RUN_HW_REASON": "hw.hardware_exit_reason",
    "RUN_FAIL_REASON": "fail_entry.hardware_entry_failure_reason",
    "RUN_FAIL_CPU": "fail_entry.cpu",
    "RUN_IO": "io.direction",
    "RUN_IO_SIZE": "io.size",
    "RUN_IO_PORT": "io.port",
    "RUN_IO_COUNT": "io.count",
    "RUN_IO_DATA_OFFSET": "io.data_offset",
    "RUN_MMIO": "mmio.phys_addr",
    "RUN_MMIO_DATA": "mmio.data",
    "RUN_MMIO_LEN": "mmio.len",
    "RUN_MMIO_IS_WRITE": "mmio.is_write",
    "RUN_INTERNAL": "internal.suberror",
    "RUN_INTERNAL_NDATA": "internal.ndata",
    "RUN_INTERNAL_DATA": "internal.data",
    "RUN_INSN_FLAGS": "emulation_failure.flags",
    "RUN_INSN_SIZE": "emulation_failure.insn_size",
    "RUN_INSN_BYTES": "emulation_failure.insn_bytes",
    "RUN_SYSTEM_EVENT": "system_event.type",
}

PREAMBLE: Final = """
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <linux/kvm.h>
#include "kvm.h"
"""


def make_builder() -> FFI:
    """Return the builder that ``setup.py`` names."""
    builder = FFI()
    names = [*IOCTLS.split(), *CONSTANTS.split(), *RUN_OFFSETS]
    offsets = "".join(
        f"#define {name} offsetof(struct kvm_run, {field})\n" for name, field in RUN_OFFSETS.items()
    )
    builder.cdef(STRUCTS + "".join(f"#define {name} ...\n" for name in names))
    builder.cdef((FOLDER / "kvm.h").read_text())
    builder.cdef("int munmap(void *, size_t);")
    builder.set_source(
        "kvm._kvm",
        PREAMBLE + offsets,
        sources=["kvm/ffi/kvm.c"],
        depends=["kvm/ffi/kvm.h"],
        include_dirs=["kvm/ffi"],
    )
    return builder


ffibuilder = make_builder()

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
