# SPDX-License-Identifier: BSD-3-Clause
"""All that KVM keeps of a vCPU and of the chips, taken before the guest runs, to be put back later.

Putting it back is a reset: nothing of what the guest did to registers, interrupts or timers is
left, and whatever KVM was told to write into guest memory (kvmclock, stolen time) it forgets.
"""

from __future__ import annotations

import errno

from kvm._kvm import ffi, lib
from kvm.ioctl import ioctl, refuse
from kvm.x86_64 import MSR_IA32_TSC
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvm._kvm import CData, OpaqueStruct, kvm_msrs
    from kvm.vm import Kvm
    from kvm.x86_64 import X86Vcpu, X86Vm

_MTRR_CAPABILITIES: Final = 0xFE
_VARIABLE_MTRRS: Final = 8

# KVM's list leaves out what it keeps apart from the processor's registers: memory types.
_UNLISTED: Final = (
    *range(0x200, 0x200 + 2 * _VARIABLE_MTRRS),
    *(0x250, 0x258, 0x259, *range(0x268, 0x270)),
    *(0x277, 0x2FF),
)
# The counter must not go back by itself: see ``X86Vcpu.restart_counter``. The other is read-only.
_LEFT_OUT: Final = (MSR_IA32_TSC, _MTRR_CAPABILITIES)

_MAX_MSRS: Final = 1024
_CHIPS: Final = (lib.KVM_IRQCHIP_PIC_MASTER, lib.KVM_IRQCHIP_PIC_SLAVE, lib.KVM_IRQCHIP_IOAPIC)


class _Part(NamedTuple):
    struct: OpaqueStruct
    get: int
    set: int
    name: str


# In the order in which they are put back. Events come first, since they end system management mode;
# the base address of the local APIC, which is in SREGS, before the APIC itself.
_BEFORE_MSRS: Final = (
    _Part(
        *("struct kvm_vcpu_events *", lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS),
        "KVM_SET_VCPU_EVENTS",
    ),
    _Part("struct kvm_sregs *", lib.KVM_GET_SREGS, lib.KVM_SET_SREGS, "KVM_SET_SREGS"),
    _Part("struct kvm_xcrs *", lib.KVM_GET_XCRS, lib.KVM_SET_XCRS, "KVM_SET_XCRS"),
    _Part("struct kvm_xsave *", lib.KVM_GET_XSAVE, lib.KVM_SET_XSAVE, "KVM_SET_XSAVE"),
)
_AFTER_MSRS: Final = (
    _Part("struct kvm_lapic_state *", lib.KVM_GET_LAPIC, lib.KVM_SET_LAPIC, "KVM_SET_LAPIC"),
    _Part("struct kvm_regs *", lib.KVM_GET_REGS, lib.KVM_SET_REGS, "KVM_SET_REGS"),
    _Part(
        *("struct kvm_debugregs *", lib.KVM_GET_DEBUGREGS, lib.KVM_SET_DEBUGREGS),
        "KVM_SET_DEBUGREGS",
    ),
    _Part("struct kvm_mp_state *", lib.KVM_GET_MP_STATE, lib.KVM_SET_MP_STATE, "KVM_SET_MP_STATE"),
)


def listed_msrs(kvm: Kvm) -> tuple[int, ...]:
    """Return every model-specific register that a vCPU may have, but its time stamp counter."""
    table = ffi.new("struct kvm_msr_list *", {"nmsrs": _MAX_MSRS, "indices": _MAX_MSRS})
    ioctl(kvm.fd, lib.KVM_GET_MSR_INDEX_LIST, table, "KVM_GET_MSR_INDEX_LIST", kvm.path)
    listed = ffi.unpack(table.indices, table.nmsrs)
    return tuple(dict.fromkeys(each for each in (*listed, *_UNLISTED) if each not in _LEFT_OUT))


class SavedVcpu:
    """The state of one vCPU, which is paused whenever a method is called."""

    def __init__(self, vcpu: X86Vcpu, msrs: Sequence[int], like: SavedVcpu | None = None) -> None:
        """Take the state, and of the registers ``msrs`` those that KVM lets us set.

        It is faster with the state of another vCPU of the same VM, which has the same registers.

        Raises:
            HostError: KVM does not tell it.
        """
        self._vcpu = vcpu
        self._before = self._take(_BEFORE_MSRS)
        self._after = self._take(_AFTER_MSRS)
        known = None if like is None else self._take_same_msrs(like)
        self._msrs = known or self._take_msrs(msrs)

    def restore(self) -> None:
        """Put the state back.

        Raises:
            HostError: KVM refuses it.
        """
        for part, state in self._before:
            self._set(part, state)
        done = self._set_msrs(self._msrs)
        if done != self._msrs.nmsrs:
            index = self._msrs.entries[done].index
            refuse("KVM_SET_MSRS", f"MSR {index:#x} {self._vcpu.target}", errno.EINVAL)
        for part, state in self._after:
            self._set(part, state)

    def _take_msrs(self, indices: Sequence[int]) -> kvm_msrs:
        """Return the registers that KVM has and lets us set. It stops at each that it refuses."""
        wanted = [(index, 0) for index in indices]
        for transfer in (self._get_msrs, self._set_msrs):
            taken: list[tuple[int, int]] = []
            while wanted:
                table = _msr_table(wanted)
                done = transfer(table)
                taken += ((table.entries[at].index, table.entries[at].data) for at in range(done))
                wanted = wanted[done + 1 :]
            wanted = taken
        return _msr_table(wanted)

    def _take_same_msrs(self, like: SavedVcpu) -> kvm_msrs | None:
        count = like._msrs.nmsrs
        table = ffi.new("struct kvm_msrs *", {"nmsrs": count, "entries": count})
        for at in range(count):
            table.entries[at].index = like._msrs.entries[at].index
        return table if self._get_msrs(table) == count else None

    def _get_msrs(self, table: kvm_msrs) -> int:
        return ioctl(self._vcpu.fd, lib.KVM_GET_MSRS, table, "KVM_GET_MSRS", self._vcpu.target)

    def _set_msrs(self, table: kvm_msrs) -> int:
        return ioctl(self._vcpu.fd, lib.KVM_SET_MSRS, table, "KVM_SET_MSRS", self._vcpu.target)

    def _take(self, parts: Sequence[_Part]) -> list[tuple[_Part, CData]]:
        taken = []
        for part in parts:
            state = ffi.new(part.struct)
            name = part.name.replace("SET", "GET")
            try:
                ioctl(self._vcpu.fd, part.get, state, name, self._vcpu.target)
            except HostError as error:
                cause = error.__cause__
                if part.set != lib.KVM_SET_XCRS or not isinstance(cause, OSError):
                    raise
                continue  # a processor without XSAVE
            taken.append((part, state))
        return taken

    def _set(self, part: _Part, state: CData) -> None:
        ioctl(self._vcpu.fd, part.set, state, part.name, self._vcpu.target)


def _msr_table(values: Sequence[tuple[int, int]]) -> kvm_msrs:
    table = ffi.new("struct kvm_msrs *", {"nmsrs": len(values), "entries": len(values)})
    for at, (index, value) in enumerate(values):
        table.entries[at].index, table.entries[at].data = index, value
    return table


class SavedChips:
    """The state of KVM's interrupt controllers and of its interval timer."""

    def __init__(self, vm: X86Vm) -> None:
        """Take the state.

        Raises:
            HostError: KVM does not tell it.
        """
        self._vm = vm
        self._chips = [self._take_chip(chip) for chip in _CHIPS]
        self._timer = ffi.new("struct kvm_pit_state2 *")
        ioctl(vm.fd, lib.KVM_GET_PIT2, self._timer, "KVM_GET_PIT2")

    def reset(self) -> None:
        """Put the state back; no device asserts an interrupt line.

        Raises:
            HostError: KVM refuses it.
        """
        for chip in self._chips:
            ioctl(self._vm.fd, lib.KVM_SET_IRQCHIP, chip, "KVM_SET_IRQCHIP")
        ioctl(self._vm.fd, lib.KVM_SET_PIT2, self._timer, "KVM_SET_PIT2")

    def _take_chip(self, chip: int) -> CData:
        state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        ioctl(self._vm.fd, lib.KVM_GET_IRQCHIP, state, "KVM_GET_IRQCHIP")
        return state
