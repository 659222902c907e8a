# SPDX-License-Identifier: BSD-3-Clause
"""The state of vCPUs and chips that is taken and put back, with KVM itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from crosvm_py.machine.x86_64.layout import IDENTITY_MAP_GPA, TSS_GPA
from kvm.vm import Kvm
from kvm.x86_64 import MSR_IA32_TSC, X86Vcpu, X86Vm
from kvm.x86_state import SavedChips, SavedVcpu, listed_msrs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kvm

MSR_PAT, MSR_KVM_SYSTEM_TIME, MSR_MTRR_DEF_TYPE = 0x277, 0x4B564D01, 0x2FF
SPURIOUS = 0xF0


class Parts(NamedTuple):
    kvm: Kvm
    vm: X86Vm
    vcpus: list[X86Vcpu]


@pytest.fixture
def parts() -> Iterator[Parts]:
    kvm = Kvm.open()
    vm = kvm.create_vm(X86Vm)
    vm.set_tss_address(TSS_GPA)
    vm.set_identity_map_address(IDENTITY_MAP_GPA)
    vm.create_irqchip()
    vm.create_pit2()
    vcpus = [vm.create_vcpu(index) for index in range(2)]
    yield Parts(kvm, vm, vcpus)
    for vcpu in vcpus:
        vcpu.close()
    vm.close()
    kvm.close()


def state(vcpu: X86Vcpu) -> list[object]:
    regs, sregs = vcpu.regs(), vcpu.sregs()
    msrs = [vcpu.msr(index) for index in (MSR_PAT, MSR_KVM_SYSTEM_TIME, MSR_MTRR_DEF_TYPE)]
    return [regs.rip, regs.rax, sregs.cr0, sregs.cs.base, *msrs, vcpu.lapic(), vcpu.mp_state()]


def change(vcpu: X86Vcpu) -> None:
    regs, sregs = vcpu.regs(), vcpu.sregs()
    regs.rip, regs.rax = 0x1234, 0x5678
    vcpu.set_regs(regs)
    sregs.cs.base = 0x10000
    vcpu.set_sregs(sregs)
    vcpu.set_msr(MSR_PAT, 0x0606060606060606)
    vcpu.set_msr(MSR_MTRR_DEF_TYPE, 0xC06)
    lapic = bytearray(vcpu.lapic())
    lapic[SPURIOUS] = 0x77
    vcpu.set_lapic(bytes(lapic))


@pytest.mark.parametrize("alike", [False, True])
def test_vcpu_is_what_it_was(parts: Parts, alike: bool) -> None:
    msrs = listed_msrs(parts.kvm)
    first = SavedVcpu(parts.vcpus[0], msrs)
    saved = SavedVcpu(parts.vcpus[1], msrs, first if alike else None)
    before = state(parts.vcpus[1])
    change(parts.vcpus[1])
    assert state(parts.vcpus[1]) != before
    saved.restore()
    assert state(parts.vcpus[1]) == before


def test_chips_take_their_state_back_as_often_as_it_is_given(parts: Parts) -> None:
    chips = SavedChips(parts.vm)
    for _ in range(3):
        parts.vm.set_irq_line(4, asserted=True)
        parts.vm.set_irq_line(4, asserted=False)
        chips.reset()


def test_time_stamp_counter_is_not_among_the_registers(parts: Parts) -> None:
    assert MSR_IA32_TSC not in listed_msrs(parts.kvm)
    for vcpu in parts.vcpus:
        vcpu.restart_counter()
