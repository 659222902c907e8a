# SPDX-License-Identifier: BSD-3-Clause
"""One KVM vCPU: its registers, its run page, and how another thread makes it leave the guest."""

from __future__ import annotations

import errno
import os

from kvm._kvm import ffi, lib
from kvm.ioctl import ioctl, ioctl_int, refuse
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvm._kvm import kvm_regs, kvm_sregs

KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final[int] = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


class CpuidEntry(NamedTuple):
    """One leaf of ``struct kvm_cpuid_entry2``."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def install_kick_handler(signo: int) -> None:
    """Make ``signo`` interrupt KVM_RUN in the thread that gets it, and do nothing else.

    Raises:
        HostError: a program cannot handle this signal.
    """
    result = lib.crosvm_install_kick_handler(signo)
    if result < 0:
        refuse("sigaction", f"signal {signo}", -result)


def kick_thread(tid: int, signo: int) -> None:
    """Send ``signo`` to thread ``tid`` of this process.

    Raises:
        HostError: there is no such thread.
    """
    result = lib.crosvm_kick(tid, signo)
    if result < 0:
        refuse("tgkill", f"thread {tid}", -result)


class Vcpu:
    """A virtual processor, which one thread runs.

    If another thread calls a method that makes an ioctl, KVM makes it wait until the vCPU has left
    the guest.

    ``page`` is the mapping of ``struct kvm_run`` and the data after it, as bytes. It stays mapped
    as long as there is a view of it, even after ``close``.
    """

    def __init__(self, index: int, fd: int, run_bytes: int) -> None:
        self.index = index
        self.fd = fd
        address = lib.crosvm_map_run(fd, run_bytes)
        if address == ffi.NULL:
            os.close(fd)
            refuse("mmap", f"run page of vCPU {index}", errno.ENOMEM)
        owned = ffi.gc(address, lambda page: lib.munmap(page, run_bytes), run_bytes)
        self.page = memoryview(ffi.buffer(owned, run_bytes)).cast("B")

    @property
    def _target(self) -> str:
        return f"on vCPU {self.index}"

    def run(self) -> int:
        """Run the guest; return 0 if it left with an exit reason, else a negative ``errno``."""
        return lib.crosvm_vcpu_run(self.fd)

    def set_immediate_exit(self, *, enabled: bool) -> None:
        """Make the next KVM_RUN complete the last exit and then return at once with EINTR."""
        self.page[lib.RUN_IMMEDIATE_EXIT] = enabled

    def regs(self) -> kvm_regs:
        """Return a copy of the general registers."""
        regs = ffi.new("struct kvm_regs *")
        ioctl(self.fd, lib.KVM_GET_REGS, regs, "KVM_GET_REGS", self._target)
        return regs

    def set_regs(self, regs: kvm_regs) -> None:
        """Set the general registers."""
        ioctl(self.fd, lib.KVM_SET_REGS, regs, "KVM_SET_REGS", self._target)

    def sregs(self) -> kvm_sregs:
        """Return a copy of the segment and control registers."""
        sregs = ffi.new("struct kvm_sregs *")
        ioctl(self.fd, lib.KVM_GET_SREGS, sregs, "KVM_GET_SREGS", self._target)
        return sregs

    def set_sregs(self, sregs: kvm_sregs) -> None:
        """Set the segment and control registers."""
        ioctl(self.fd, lib.KVM_SET_SREGS, sregs, "KVM_SET_SREGS", self._target)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Set every leaf that the guest will see. Call it once, before the first ``run``."""
        count = len(entries)
        table = ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})
        for at, leaf in enumerate(entries):
            entry = table.entries[at]
            entry.function, entry.index, entry.flags = leaf.function, leaf.subleaf, leaf.flags
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        ioctl(self.fd, lib.KVM_SET_CPUID2, table, "KVM_SET_CPUID2", self._target)

    def set_msr(self, index: int, value: int) -> bool:
        """Set one model-specific register; return whether KVM accepted it.

        KVM stops at the first register that it refuses, so we set one at a time.
        """
        table = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        table.entries[0].index = index
        table.entries[0].data = value
        return ioctl(self.fd, lib.KVM_SET_MSRS, table, "KVM_SET_MSRS", self._target) == 1

    def msr(self, index: int) -> int | None:
        """Return one model-specific register, or ``None`` if KVM does not have it."""
        table = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        table.entries[0].index = index
        if ioctl(self.fd, lib.KVM_GET_MSRS, table, "KVM_GET_MSRS", self._target) != 1:
            return None
        return table.entries[0].data

    def lapic(self) -> bytes:
        """Return the register page of the in-kernel local APIC."""
        state = ffi.new("struct kvm_lapic_state *")
        ioctl(self.fd, lib.KVM_GET_LAPIC, state, "KVM_GET_LAPIC", self._target)
        return bytes(ffi.buffer(state))

    def set_lapic(self, registers: bytes) -> None:
        """Set the register page of the in-kernel local APIC."""
        state = ffi.new("struct kvm_lapic_state *")
        ffi.buffer(state)[:] = registers
        ioctl(self.fd, lib.KVM_SET_LAPIC, state, "KVM_SET_LAPIC", self._target)

    def mp_state(self) -> int:
        """Return the ``KVM_MP_STATE_…``."""
        state = ffi.new("struct kvm_mp_state *")
        ioctl(self.fd, lib.KVM_GET_MP_STATE, state, "KVM_GET_MP_STATE", self._target)
        return state.mp_state

    def set_mp_state(self, value: int) -> None:
        """Set the ``KVM_MP_STATE_…``."""
        state = ffi.new("struct kvm_mp_state *", {"mp_state": value})
        ioctl(self.fd, lib.KVM_SET_MP_STATE, state, "KVM_SET_MP_STATE", self._target)

    def notify_paused(self) -> None:
        """Tell the guest's watchdogs that it was paused, if the guest uses kvmclock."""
        result = lib.crosvm_ioctl_int(self.fd, lib.KVM_KVMCLOCK_CTRL, 0)
        if result < 0 and -result != errno.EINVAL:
            refuse("KVM_KVMCLOCK_CTRL", self._target, -result)

    def tsc_khz(self) -> int:
        """Return the frequency of the guest's time stamp counter, in kHz."""
        return ioctl_int(self.fd, lib.KVM_GET_TSC_KHZ, 0, "KVM_GET_TSC_KHZ", self._target)

    def close(self) -> None:
        """Close the vCPU. The run page stays mapped as long as there is a view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.page.release()
