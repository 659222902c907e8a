# SPDX-License-Identifier: BSD-3-Clause
"""KVM objects on the real device, and the messages for a user without one."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from kvm.vm import ChipRoute, Kvm, MsiRoute
from kvm.x86_64 import (
    KVM_CAP_TSC_DEADLINE_TIMER,
    KVM_IRQCHIP_IOAPIC,
    X86Vcpu,
    X86Vm,
    supported_cpuid,
)
from sys_util.errors import HostError, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("steady_fds")

DOORBELL = 0xD000_0000
TSS = 0xFEFF_D000
IDENTITY_MAP = 0xFEFF_C000
MSI_ADDRESS = 0xFEE0_0000
MSR_TSC = 0x10
NO_SUCH_MSR = 0xDEAD


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    kvm = Kvm.open()
    yield kvm
    kvm.close()


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[X86Vm]:
    vm = kvm.create_vm(X86Vm)
    vm.set_tss_address(TSS)
    vm.set_identity_map_address(IDENTITY_MAP)
    vm.create_irqchip()
    vm.create_pit2()
    vm.drop_missed_pit_ticks()
    yield vm
    vm.close()


@pytest.fixture
def vcpu(vm: X86Vm) -> Iterator[X86Vcpu]:
    vcpu = vm.create_vcpu(0)
    yield vcpu
    vcpu.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        pytest.param(errno.ENOENT, "load the module kvm_intel or kvm_amd", id="missing"),
        pytest.param(errno.ENODEV, "load the module", id="no-module"),
        pytest.param(errno.EACCES, "join the group .* usermod -aG kvm", id="permission"),
        pytest.param(errno.EPERM, "container or device cgroup", id="cgroup"),
        pytest.param(errno.EMFILE, "Too many open files", id="other"),
    ],
)
def test_open_refused_names_device_and_fix(
    monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(_path: str, _flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match="open /dev/kvm") as caught:
        Kvm.open()
    assert caught.value.__cause__ is not None
    with pytest.raises(HostError, match=reason):
        raise HostError("x", describe(caught.value))


def test_open_missing_device_raises(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="load the module"):
        Kvm.open(str(tmp_path / "kvm"))


def test_open_another_device_raises_and_closes_it() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=r"KVM_GET_API_VERSION /dev/null \(this is not KVM"):
        Kvm.open("/dev/null")
    assert sorted(os.listdir("/proc/self/fd")) == before


class TestOnKvm:
    pytestmark = pytest.mark.kvm

    def test_descriptors_are_not_inherited(self, kvm: Kvm, vm: X86Vm, vcpu: X86Vcpu) -> None:
        assert not any(os.get_inheritable(owner.fd) for owner in (kvm, vm, vcpu))

    def test_extensions_and_limits(self, kvm: Kvm) -> None:
        assert kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER)
        assert kvm.check_extension(0x7FFF) == 0
        assert kvm.max_vcpus >= 1

    def test_supported_cpuid_names_kvm(self, kvm: Kvm) -> None:
        leaves = {entry.function: entry for entry in supported_cpuid(kvm)}
        assert leaves[0x4000_0000].ebx.to_bytes(4, "little") == b"KVMK"

    def test_add_memory_overlap_raises(self, vm: X86Vm) -> None:
        with mmap.mmap(-1, 0x4000) as pages:
            vm.add_memory(0, 0x1000, pages)
            with pytest.raises(HostError, match=r"KVM_SET_USER_MEMORY_REGION slot 1 at 0x2000"):
                vm.add_memory(1, 0x2000, pages)
            with pytest.raises(HostError, match="slot 0"):
                vm.add_memory(0, 0x10000, pages)
            vm.remove_memory(0)

    def test_memory_cannot_be_unmapped_under_the_vm(self, vm: X86Vm) -> None:
        pages = mmap.mmap(-1, 0x1000)
        vm.add_memory(0, 0, pages)
        with pytest.raises(BufferError, match="exported pointers exist"):
            pages.close()
        vm.remove_memory(0)
        pages.close()

    def test_refused_memory_is_let_go(self, vm: X86Vm) -> None:
        pages = mmap.mmap(-1, 0x1000)
        with pytest.raises(HostError, match="KVM_SET_USER_MEMORY_REGION"):
            vm.add_memory(0, 0x123, pages)
        pages.close()

    def test_irqfd_twice_raises(self, vm: X86Vm, eventfd: int) -> None:
        vm.assign_irqfd(5, eventfd)
        with pytest.raises(HostError, match="KVM_IRQFD GSI 5"):
            vm.assign_irqfd(5, eventfd)
        vm.deassign_irqfd(5, eventfd)

    @pytest.mark.parametrize("length", [0, 2, 4])
    @pytest.mark.parametrize("pio", [False, True], ids=["mmio", "pio"])
    def test_ioeventfd_comes_and_goes(
        self, vm: X86Vm, eventfd: int, length: int, pio: bool
    ) -> None:
        address = 0xC000 if pio else DOORBELL
        vm.register_ioeventfd(eventfd, address, length, pio=pio)
        with pytest.raises(HostError, match=f"KVM_IOEVENTFD at {address:#x}"):
            vm.register_ioeventfd(eventfd, address, length, pio=pio)
        vm.unregister_ioeventfd(eventfd, address, length, pio=pio)
        vm.register_ioeventfd(eventfd, address, length, pio=pio)

    def test_ioeventfd_without_any_length_takes_both_or_none(self, vm: X86Vm, eventfd: int) -> None:
        old = X86Vm(os.dup(vm.fd), 0, ioeventfd_any_length=False)
        vm.register_ioeventfd(eventfd, DOORBELL, 4)
        with pytest.raises(HostError, match="KVM_IOEVENTFD"):
            old.register_ioeventfd(eventfd, DOORBELL)
        vm.register_ioeventfd(eventfd, DOORBELL, 2)
        vm.unregister_ioeventfd(eventfd, DOORBELL, 2)
        vm.unregister_ioeventfd(eventfd, DOORBELL, 4)
        old.register_ioeventfd(eventfd, DOORBELL)
        old.close()

    def test_routing_takes_pins_and_messages(self, vm: X86Vm, eventfd: int) -> None:
        vm.set_gsi_routing([ChipRoute(3, KVM_IRQCHIP_IOAPIC, 3)], [MsiRoute(24, MSI_ADDRESS, 0x41)])
        vm.assign_irqfd(24, eventfd)
        vm.set_irq_line(3, asserted=True)
        vm.set_irq_line(3, asserted=False)

    def test_routing_to_no_such_pin_raises(self, vm: X86Vm) -> None:
        with pytest.raises(HostError, match="KVM_SET_GSI_ROUTING 1 routes"):
            vm.set_gsi_routing([ChipRoute(3, KVM_IRQCHIP_IOAPIC, 99)], [])

    def test_clock_can_be_set(self, vm: X86Vm) -> None:
        vm.set_clock_ns(10**15)
        assert 10**15 <= vm.clock_ns() < 2 * 10**15

    def test_vcpu_twice_raises(self, vm: X86Vm, vcpu: X86Vcpu) -> None:
        with pytest.raises(HostError, match="KVM_CREATE_VCPU 0"):
            vm.create_vcpu(vcpu.index)

    def test_registers_are_kept(self, vcpu: X86Vcpu) -> None:
        regs = vcpu.regs()
        regs.r15 = 0x1234_5678_9ABC_DEF0
        vcpu.set_regs(regs)
        sregs = vcpu.sregs()
        sregs.gdt.base = 0x1500
        vcpu.set_sregs(sregs)
        assert vcpu.regs().r15 == 0x1234_5678_9ABC_DEF0
        assert vcpu.sregs().gdt.base == 0x1500

    def test_msr_that_kvm_lacks_is_refused(self, vcpu: X86Vcpu) -> None:
        assert vcpu.msr(MSR_TSC) is not None
        assert vcpu.msr(NO_SUCH_MSR) is None
        assert not vcpu.set_msr(NO_SUCH_MSR, 1)

    def test_lapic_is_kept(self, vcpu: X86Vcpu) -> None:
        vcpu.set_lapic(vcpu.lapic())
        assert len(vcpu.lapic()) == 1024

    def test_mp_state_is_kept(self, vcpu: X86Vcpu) -> None:
        state = vcpu.mp_state()
        vcpu.set_mp_state(state)
        assert vcpu.mp_state() == state

    def test_notify_paused_without_kvmclock_is_no_error(self, vcpu: X86Vcpu) -> None:
        vcpu.notify_paused()

    def test_immediate_exit_keeps_out_of_the_guest(self, vcpu: X86Vcpu) -> None:
        vcpu.set_immediate_exit(enabled=True)
        assert vcpu.run() == -errno.EINTR

    def test_close_twice_is_harmless(self, kvm: Kvm, vm: X86Vm, vcpu: X86Vcpu) -> None:
        for owner in (vcpu, vm, kvm):
            owner.close()
            owner.close()
            assert owner.fd == -1
