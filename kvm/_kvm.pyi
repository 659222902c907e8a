# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: N801
"""What ``kvm/ffi/build_kvm.py`` declares, for the type checker."""

from collections.abc import Callable
from typing import Literal, overload

from _typeshed import ReadableBuffer

class CData: ...

class kvm_regs(CData):
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int

class kvm_segment(CData):
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int
    g: int
    avl: int
    unusable: int

class kvm_dtable(CData):
    base: int
    limit: int

class kvm_sregs(CData):
    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int

class kvm_cpuid_entry2(CData):
    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int

class kvm_cpuid2(CData):
    nent: int
    entries: list[kvm_cpuid_entry2]

class kvm_msr_entry(CData):
    index: int
    data: int

class kvm_msrs(CData):
    nmsrs: int
    entries: list[kvm_msr_entry]

class kvm_irq_routing(CData):
    nr: int

class kvm_mp_state(CData):
    mp_state: int

class kvm_lapic_state(CData):
    regs: CData

class kvm_msr_list(CData):
    nmsrs: int
    indices: CData

# Those that are only taken from KVM and given back.
OpaqueStruct = Literal[
    "struct kvm_vcpu_events *",
    "struct kvm_sregs *",
    "struct kvm_xcrs *",
    "struct kvm_xsave *",
    "struct kvm_lapic_state *",
    "struct kvm_regs *",
    "struct kvm_debugregs *",
    "struct kvm_mp_state *",
    "struct kvm_pit_state2 *",
]

class kvm_clock_data(CData):
    clock: int
    flags: int

class _Ffi:
    NULL: CData
    @overload
    def new(self, cdecl: Literal["struct kvm_regs *"]) -> kvm_regs: ...
    @overload
    def new(self, cdecl: Literal["struct kvm_sregs *"]) -> kvm_sregs: ...
    @overload
    def new(self, cdecl: Literal["struct kvm_cpuid2 *"], init: dict[str, int]) -> kvm_cpuid2: ...
    @overload
    def new(self, cdecl: Literal["struct kvm_msrs *"], init: dict[str, int]) -> kvm_msrs: ...
    @overload
    def new(
        self, cdecl: Literal["struct kvm_irq_routing *"], init: dict[str, int]
    ) -> kvm_irq_routing: ...
    @overload
    def new(
        self, cdecl: Literal["struct kvm_mp_state *"], init: dict[str, int] = ...
    ) -> kvm_mp_state: ...
    @overload
    def new(self, cdecl: Literal["struct kvm_lapic_state *"]) -> kvm_lapic_state: ...
    @overload
    def new(
        self, cdecl: Literal["struct kvm_clock_data *"], init: dict[str, int] = ...
    ) -> kvm_clock_data: ...
    @overload
    def new(
        self,
        cdecl: Literal[
            "struct kvm_userspace_memory_region *",
            "struct kvm_irqfd *",
            "struct kvm_ioeventfd *",
            "struct kvm_irq_level *",
            "struct kvm_pit_config *",
            "struct kvm_reinject_control *",
            "struct kvm_msi *",
        ],
        init: dict[str, int],
    ) -> CData: ...
    @overload
    def new(
        self, cdecl: Literal["struct kvm_msr_list *"], init: dict[str, int]
    ) -> kvm_msr_list: ...
    @overload
    def new(self, cdecl: Literal["struct kvm_irqchip *"], init: dict[str, int]) -> CData: ...
    @overload
    def new(self, cdecl: OpaqueStruct) -> CData: ...
    @overload
    def new(self, cdecl: Literal["uint64_t *"], init: int) -> CData: ...
    @overload
    def new(self, cdecl: Literal["unsigned int[4]"]) -> CData: ...
    def cast(self, cdecl: Literal["uintptr_t"], value: CData) -> int: ...
    def from_buffer(self, buffer: ReadableBuffer, require_writable: bool = ...) -> CData: ...
    def unpack(self, cdata: CData, length: int) -> list[int]: ...
    def buffer(self, cdata: CData, size: int = ...) -> memoryview: ...
    def gc(self, cdata: CData, destructor: Callable[[CData], object], size: int = ...) -> CData: ...
    def release(self, cdata: CData) -> None: ...
    def sizeof(self, cdecl: str) -> int: ...

class _Lib:
    def crosvm_ioctl(self, fd: int, request: int, arg: CData) -> int: ...
    def crosvm_ioctl_int(self, fd: int, request: int, arg: int) -> int: ...
    def crosvm_vcpu_run(self, fd: int) -> int: ...
    def crosvm_map_run(self, fd: int, size: int) -> CData: ...
    def crosvm_chip_route(
        self, table: kvm_irq_routing, at: int, gsi: int, chip: int, pin: int
    ) -> None: ...
    def crosvm_msi_route(
        self, table: kvm_irq_routing, at: int, gsi: int, address: int, data: int
    ) -> None: ...
    def crosvm_install_kick_handler(self, signo: int) -> int: ...
    def crosvm_kick(self, tid: int, signo: int) -> int: ...
    def crosvm_has_hardware_virtualization(self) -> int: ...
    def crosvm_host_cpuid(self, leaf: int, registers: CData) -> int: ...
    def munmap(self, address: CData, size: int) -> int: ...
    KVM_GET_API_VERSION: int
    KVM_CREATE_VM: int
    KVM_CHECK_EXTENSION: int
    KVM_GET_VCPU_MMAP_SIZE: int
    KVM_GET_SUPPORTED_CPUID: int
    KVM_CREATE_VCPU: int
    KVM_SET_USER_MEMORY_REGION: int
    KVM_SET_TSS_ADDR: int
    KVM_SET_IDENTITY_MAP_ADDR: int
    KVM_CREATE_IRQCHIP: int
    KVM_IRQ_LINE: int
    KVM_SET_GSI_ROUTING: int
    KVM_CREATE_PIT2: int
    KVM_REINJECT_CONTROL: int
    KVM_SIGNAL_MSI: int
    KVM_IRQFD: int
    KVM_IOEVENTFD: int
    KVM_SET_CLOCK: int
    KVM_GET_CLOCK: int
    KVM_RUN: int
    KVM_GET_REGS: int
    KVM_SET_REGS: int
    KVM_GET_SREGS: int
    KVM_SET_SREGS: int
    KVM_GET_MSRS: int
    KVM_SET_MSRS: int
    KVM_GET_MSR_INDEX_LIST: int
    KVM_GET_VCPU_EVENTS: int
    KVM_SET_VCPU_EVENTS: int
    KVM_GET_XCRS: int
    KVM_SET_XCRS: int
    KVM_GET_XSAVE: int
    KVM_SET_XSAVE: int
    KVM_GET_DEBUGREGS: int
    KVM_SET_DEBUGREGS: int
    KVM_GET_IRQCHIP: int
    KVM_SET_IRQCHIP: int
    KVM_GET_PIT2: int
    KVM_SET_PIT2: int
    KVM_GET_LAPIC: int
    KVM_SET_LAPIC: int
    KVM_SET_CPUID2: int
    KVM_GET_MP_STATE: int
    KVM_SET_MP_STATE: int
    KVM_KVMCLOCK_CTRL: int
    KVM_GET_TSC_KHZ: int
    KVM_API_VERSION: int
    KVM_CAP_IRQCHIP: int
    KVM_CAP_USER_MEMORY: int
    KVM_CAP_SET_TSS_ADDR: int
    KVM_CAP_EXT_CPUID: int
    KVM_CAP_NR_VCPUS: int
    KVM_CAP_MAX_VCPUS: int
    KVM_CAP_MAX_VCPU_ID: int
    KVM_CAP_NR_MEMSLOTS: int
    KVM_CAP_MP_STATE: int
    KVM_CAP_IRQ_ROUTING: int
    KVM_CAP_IRQFD: int
    KVM_CAP_IOEVENTFD: int
    KVM_CAP_IOEVENTFD_ANY_LENGTH: int
    KVM_CAP_PIT2: int
    KVM_CAP_SET_IDENTITY_MAP_ADDR: int
    KVM_CAP_ADJUST_CLOCK: int
    KVM_CAP_TSC_DEADLINE_TIMER: int
    KVM_CAP_KVMCLOCK_CTRL: int
    KVM_CAP_IMMEDIATE_EXIT: int
    KVM_CAP_GET_TSC_KHZ: int
    KVM_MEM_LOG_DIRTY_PAGES: int
    KVM_MEM_READONLY: int
    KVM_PIT_SPEAKER_DUMMY: int
    KVM_IRQFD_FLAG_DEASSIGN: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_PIO: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    KVM_IRQCHIP_PIC_MASTER: int
    KVM_IRQCHIP_PIC_SLAVE: int
    KVM_IRQCHIP_IOAPIC: int
    KVM_MP_STATE_RUNNABLE: int
    KVM_MP_STATE_UNINITIALIZED: int
    KVM_MP_STATE_INIT_RECEIVED: int
    KVM_MP_STATE_HALTED: int
    KVM_MP_STATE_SIPI_RECEIVED: int
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX: int
    KVM_EXIT_UNKNOWN: int
    KVM_EXIT_EXCEPTION: int
    KVM_EXIT_IO: int
    KVM_EXIT_HYPERCALL: int
    KVM_EXIT_DEBUG: int
    KVM_EXIT_HLT: int
    KVM_EXIT_MMIO: int
    KVM_EXIT_IRQ_WINDOW_OPEN: int
    KVM_EXIT_SHUTDOWN: int
    KVM_EXIT_FAIL_ENTRY: int
    KVM_EXIT_INTR: int
    KVM_EXIT_SET_TPR: int
    KVM_EXIT_TPR_ACCESS: int
    KVM_EXIT_NMI: int
    KVM_EXIT_INTERNAL_ERROR: int
    KVM_EXIT_SYSTEM_EVENT: int
    KVM_EXIT_IOAPIC_EOI: int
    KVM_EXIT_IO_IN: int
    KVM_EXIT_IO_OUT: int
    KVM_INTERNAL_ERROR_EMULATION: int
    KVM_INTERNAL_ERROR_SIMUL_EX: int
    KVM_INTERNAL_ERROR_DELIVERY_EV: int
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: int
    KVM_SYSTEM_EVENT_SHUTDOWN: int
    KVM_SYSTEM_EVENT_RESET: int
    KVM_SYSTEM_EVENT_CRASH: int
    RUN_IMMEDIATE_EXIT: int
    RUN_EXIT_REASON: int
    RUN_HW_REASON: int
    RUN_FAIL_REASON: int
    RUN_FAIL_CPU: int
    RUN_IO: int
    RUN_IO_SIZE: int
    RUN_IO_PORT: int
    RUN_IO_COUNT: int
    RUN_IO_DATA_OFFSET: int
    RUN_MMIO: int
    RUN_MMIO_DATA: int
    RUN_MMIO_LEN: int
    RUN_MMIO_IS_WRITE: int
    RUN_INTERNAL: int
    RUN_INTERNAL_NDATA: int
    RUN_INTERNAL_DATA: int
    RUN_INSN_FLAGS: int
    RUN_INSN_SIZE: int
    RUN_INSN_BYTES: int
    RUN_SYSTEM_EVENT: int

ffi: _Ffi
lib: _Lib
