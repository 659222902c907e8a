# SPDX-License-Identifier: BSD-3-Clause
"""What KVM has for x86 alone: CPUID, registers, interrupt controllers, the timer, the clock."""

from __future__ import annotations

from kvm._kvm import ffi, lib
from kvm.ioctl import ioctl, ioctl_int
from kvm.vcpu import Vcpu
from kvm.vm import Vm
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvm._kvm import kvm_regs, kvm_sregs
    from kvm.vm import Kvm

KVM_IRQCHIP_PIC_MASTER: Final[int] = lib.KVM_IRQCHIP_PIC_MASTER
KVM_IRQCHIP_PIC_SLAVE: Final[int] = lib.KVM_IRQCHIP_PIC_SLAVE
KVM_IRQCHIP_IOAPIC: Final[int] = lib.KVM_IRQCHIP_IOAPIC
KVM_CAP_TSC_DEADLINE_TIMER: Final[int] = lib.KVM_CAP_TSC_DEADLINE_TIMER

MSR_IA32_TSC: Final = 0x10

KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final[int] = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


# Far more than KVM has. A kernel with more entries would refuse the call with E2BIG.
MAX_CPUID_ENTRIES: Final = 256

# Beside those of every architecture.
REQUIRED_EXTENSIONS: Final = {
    lib.KVM_CAP_SET_TSS_ADDR: "KVM_CAP_SET_TSS_ADDR",
    lib.KVM_CAP_SET_IDENTITY_MAP_ADDR: "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    lib.KVM_CAP_EXT_CPUID: "KVM_CAP_EXT_CPUID",
    lib.KVM_CAP_PIT2: "KVM_CAP_PIT2",
}


class CpuidEntry(NamedTuple):
    """One leaf of ``struct kvm_cpuid_entry2``."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def host_cpuid(leaf: int) -> tuple[int, int, int, int] | None:
    """Return EAX, EBX, ECX, EDX of the host's CPUID leaf; ``None`` if there is no such leaf.

    The leaf must be one without subleaves.
    """
    registers = ffi.new("unsigned int[4]")
    if not lib.crosvm_host_cpuid(leaf, registers):
        return None
    eax, ebx, ecx, edx = ffi.unpack(registers, 4)
    return eax, ebx, ecx, edx


def supported_cpuid(kvm: Kvm) -> list[CpuidEntry]:
    """Return every CPUID leaf that KVM can offer on this host."""
    table = ffi.new(
        "struct kvm_cpuid2 *", {"nent": MAX_CPUID_ENTRIES, "entries": MAX_CPUID_ENTRIES}
    )
    ioctl(kvm.fd, lib.KVM_GET_SUPPORTED_CPUID, table, "KVM_GET_SUPPORTED_CPUID", kvm.path)
    return [
        CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
        for e in (table.entries[at] for at in range(table.nent))
    ]


class X86Vm(Vm):
    """A virtual machine of x86."""

    def set_tss_address(self, gpa: int) -> None:
        """Give KVM three pages of guest-physical addresses for real-mode emulation on Intel."""
        ioctl_int(self.fd, lib.KVM_SET_TSS_ADDR, gpa, "KVM_SET_TSS_ADDR")

    def set_identity_map_address(self, gpa: int) -> None:
        """Give KVM one page of guest-physical addresses, for its identity page table on Intel."""
        address = ffi.new("uint64_t *", gpa)
        ioctl(self.fd, lib.KVM_SET_IDENTITY_MAP_ADDR, address, "KVM_SET_IDENTITY_MAP_ADDR")

    def create_irqchip(self) -> None:
        """Have KVM emulate two PICs and an IOAPIC, and a LAPIC for each vCPU made later."""
        ioctl_int(self.fd, lib.KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP")

    def create_pit2(self) -> None:
        """Have KVM emulate the interval timer, including port 0x61."""
        config = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY})
        ioctl(self.fd, lib.KVM_CREATE_PIT2, config, "KVM_CREATE_PIT2")

    def drop_missed_pit_ticks(self) -> None:
        """Have KVM drop timer ticks that the guest could not take, not deliver them later.

        A VM that was suspended for an hour would get 3.6 million ticks at once. The first call
        waits up to 20 ms for readers of KVM's interrupt tables; a second call does nothing.
        """
        control = ffi.new("struct kvm_reinject_control *", {"pit_reinject": 0})
        ioctl(self.fd, lib.KVM_REINJECT_CONTROL, control, "KVM_REINJECT_CONTROL")

    def clock_ns(self) -> int:
        """Return the guest's kvmclock in nanoseconds."""
        data = ffi.new("struct kvm_clock_data *")
        ioctl(self.fd, lib.KVM_GET_CLOCK, data, "KVM_GET_CLOCK")
        return data.clock

    def set_clock_ns(self, clock_ns: int) -> None:
        """Set the guest's kvmclock."""
        data = ffi.new("struct kvm_clock_data *", {"clock": clock_ns, "flags": 0})
        ioctl(self.fd, lib.KVM_SET_CLOCK, data, "KVM_SET_CLOCK")

    def create_vcpu(self, index: int, apic_id: int | None = None) -> X86Vcpu:
        """Create the vCPU ``index``, by default with its index as APIC id."""
        return self._create_vcpu(X86Vcpu, index, index if apic_id is None else apic_id)


class X86Vcpu(Vcpu):
    """A virtual processor of x86."""

    def instruction_pointer(self) -> int:
        """Return the guest's virtual address of the next instruction."""
        return self.regs().rip

    def switch_off(self) -> None:
        """Have the vCPU wait for INIT and SIPI, as all but the first do when they are made.

        INIT clears what it did before: registers, the local APIC, a pending NMI.
        """
        self.set_mp_state(lib.KVM_MP_STATE_UNINITIALIZED)

    def regs(self) -> kvm_regs:
        """Return a copy of the general registers."""
        regs = ffi.new("struct kvm_regs *")
        ioctl(self.fd, lib.KVM_GET_REGS, regs, "KVM_GET_REGS", self.target)
        return regs

    def set_regs(self, regs: kvm_regs) -> None:
        """Set the general registers."""
        ioctl(self.fd, lib.KVM_SET_REGS, regs, "KVM_SET_REGS", self.target)

    def sregs(self) -> kvm_sregs:
        """Return a copy of the segment and control registers."""
        sregs = ffi.new("struct kvm_sregs *")
        ioctl(self.fd, lib.KVM_GET_SREGS, sregs, "KVM_GET_SREGS", self.target)
        return sregs

    def set_sregs(self, sregs: kvm_sregs) -> None:
        """Set the segment and control registers."""
        ioctl(self.fd, lib.KVM_SET_SREGS, sregs, "KVM_SET_SREGS", self.target)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Set every leaf that the guest will see. Call it once, before the first ``run``."""
        count = len(entries)
        table = ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})
        for at, leaf in enumerate(entries):
            entry = table.entries[at]
            entry.function, entry.index, entry.flags = leaf.function, leaf.subleaf, leaf.flags
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        ioctl(self.fd, lib.KVM_SET_CPUID2, table, "KVM_SET_CPUID2", self.target)

    def set_msr(self, index: int, value: int) -> bool:
        """Set one model-specific register; return whether KVM accepted it.

        KVM stops at the first register that it refuses, so we set one at a time.
        """
        table = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        table.entries[0].index = index
        table.entries[0].data = value
        return ioctl(self.fd, lib.KVM_SET_MSRS, table, "KVM_SET_MSRS", self.target) == 1

    def msr(self, index: int) -> int | None:
        """Return one model-specific register, or ``None`` if KVM does not have it."""
        table = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        table.entries[0].index = index
        if ioctl(self.fd, lib.KVM_GET_MSRS, table, "KVM_GET_MSRS", self.target) != 1:
            return None
        return table.entries[0].data

    def restart_counter(self) -> None:
        """Set the time stamp counter to its start; do so for all vCPUs, one after the other.

        KVM takes the first value as a new start and keeps the counters of the others together with
        it. If the last start was less than a second ago, all go on from there. (Zero would mean:
        go on with the other vCPUs.)
        """
        self.set_msr(MSR_IA32_TSC, 1)

    def lapic(self) -> bytes:
        """Return the register page of the in-kernel local APIC."""
        state = ffi.new("struct kvm_lapic_state *")
        ioctl(self.fd, lib.KVM_GET_LAPIC, state, "KVM_GET_LAPIC", self.target)
        return bytes(ffi.buffer(state))

    def set_lapic(self, registers: bytes) -> None:
        """Set the register page of the in-kernel local APIC."""
        state = ffi.new("struct kvm_lapic_state *")
        ffi.buffer(state)[:] = registers
        ioctl(self.fd, lib.KVM_SET_LAPIC, state, "KVM_SET_LAPIC", self.target)
