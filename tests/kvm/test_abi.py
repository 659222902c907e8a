# SPDX-License-Identifier: BSD-3-Clause
"""The compiler's view of the KVM ABI, against the numbers that the kernel promises for ever."""

from __future__ import annotations

import pytest

from kvm._kvm import ffi, lib
from kvm.run_page import IO_FORMAT, MMIO_FORMAT


@pytest.mark.parametrize(
    ("struct", "size"),
    [
        ("kvm_userspace_memory_region", 32),
        ("kvm_regs", 144),
        ("kvm_segment", 24),
        ("kvm_dtable", 16),
        ("kvm_sregs", 312),
        ("kvm_cpuid_entry2", 40),
        ("kvm_cpuid2", 8),
        ("kvm_msr_entry", 16),
        ("kvm_msrs", 8),
        ("kvm_irqfd", 32),
        ("kvm_ioeventfd", 64),
        ("kvm_irq_routing_entry", 48),
        ("kvm_irq_routing", 8),
        ("kvm_irq_level", 8),
        ("kvm_pit_config", 64),
        ("kvm_mp_state", 4),
        ("kvm_lapic_state", 1024),
        ("kvm_clock_data", 48),
    ],
)
def test_struct_sizes(struct: str, size: int) -> None:
    assert ffi.sizeof(f"struct {struct}") == size


@pytest.mark.parametrize(
    ("request_number", "value"),
    [
        pytest.param(lib.KVM_GET_API_VERSION, 0xAE00, id="GET_API_VERSION"),
        pytest.param(lib.KVM_CREATE_VM, 0xAE01, id="CREATE_VM"),
        pytest.param(lib.KVM_CHECK_EXTENSION, 0xAE03, id="CHECK_EXTENSION"),
        pytest.param(lib.KVM_GET_VCPU_MMAP_SIZE, 0xAE04, id="GET_VCPU_MMAP_SIZE"),
        pytest.param(lib.KVM_GET_SUPPORTED_CPUID, 0xC008AE05, id="GET_SUPPORTED_CPUID"),
        pytest.param(lib.KVM_CREATE_VCPU, 0xAE41, id="CREATE_VCPU"),
        pytest.param(lib.KVM_SET_USER_MEMORY_REGION, 0x4020AE46, id="SET_USER_MEMORY_REGION"),
        pytest.param(lib.KVM_SET_TSS_ADDR, 0xAE47, id="SET_TSS_ADDR"),
        pytest.param(lib.KVM_SET_IDENTITY_MAP_ADDR, 0x4008AE48, id="SET_IDENTITY_MAP_ADDR"),
        pytest.param(lib.KVM_CREATE_IRQCHIP, 0xAE60, id="CREATE_IRQCHIP"),
        pytest.param(lib.KVM_IRQ_LINE, 0x4008AE61, id="IRQ_LINE"),
        pytest.param(lib.KVM_SET_GSI_ROUTING, 0x4008AE6A, id="SET_GSI_ROUTING"),
        pytest.param(lib.KVM_IRQFD, 0x4020AE76, id="IRQFD"),
        pytest.param(lib.KVM_CREATE_PIT2, 0x4040AE77, id="CREATE_PIT2"),
        pytest.param(lib.KVM_REINJECT_CONTROL, 0xAE71, id="REINJECT_CONTROL"),
        pytest.param(lib.KVM_IOEVENTFD, 0x4040AE79, id="IOEVENTFD"),
        pytest.param(lib.KVM_SET_CLOCK, 0x4030AE7B, id="SET_CLOCK"),
        pytest.param(lib.KVM_GET_CLOCK, 0x8030AE7C, id="GET_CLOCK"),
        pytest.param(lib.KVM_RUN, 0xAE80, id="RUN"),
        pytest.param(lib.KVM_GET_REGS, 0x8090AE81, id="GET_REGS"),
        pytest.param(lib.KVM_SET_REGS, 0x4090AE82, id="SET_REGS"),
        pytest.param(lib.KVM_GET_SREGS, 0x8138AE83, id="GET_SREGS"),
        pytest.param(lib.KVM_SET_SREGS, 0x4138AE84, id="SET_SREGS"),
        pytest.param(lib.KVM_GET_MSRS, 0xC008AE88, id="GET_MSRS"),
        pytest.param(lib.KVM_SET_MSRS, 0x4008AE89, id="SET_MSRS"),
        pytest.param(lib.KVM_GET_LAPIC, 0x8400AE8E, id="GET_LAPIC"),
        pytest.param(lib.KVM_SET_LAPIC, 0x4400AE8F, id="SET_LAPIC"),
        pytest.param(lib.KVM_SET_CPUID2, 0x4008AE90, id="SET_CPUID2"),
        pytest.param(lib.KVM_GET_MP_STATE, 0x8004AE98, id="GET_MP_STATE"),
        pytest.param(lib.KVM_SET_MP_STATE, 0x4004AE99, id="SET_MP_STATE"),
        pytest.param(lib.KVM_GET_TSC_KHZ, 0xAEA3, id="GET_TSC_KHZ"),
        pytest.param(lib.KVM_KVMCLOCK_CTRL, 0xAEAD, id="KVMCLOCK_CTRL"),
    ],
)
def test_request_numbers(request_number: int, value: int) -> None:
    assert request_number == value


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(lib.RUN_IMMEDIATE_EXIT, 1, id="immediate_exit"),
        pytest.param(lib.RUN_EXIT_REASON, 8, id="exit_reason"),
        pytest.param(lib.RUN_HW_REASON, 32, id="hw"),
        pytest.param(lib.RUN_FAIL_REASON, 32, id="fail_entry"),
        pytest.param(lib.RUN_IO, 32, id="io"),
        pytest.param(lib.RUN_MMIO, 32, id="mmio"),
        pytest.param(lib.RUN_SYSTEM_EVENT, 32, id="system_event"),
        pytest.param(lib.RUN_INTERNAL, 32, id="suberror"),
        pytest.param(lib.RUN_INTERNAL_NDATA, 36, id="ndata"),
        pytest.param(lib.RUN_INTERNAL_DATA, 40, id="data"),
        pytest.param(lib.RUN_INSN_FLAGS, 40, id="insn_flags"),
        pytest.param(lib.RUN_INSN_SIZE, 48, id="insn_size"),
        pytest.param(lib.RUN_INSN_BYTES, 49, id="insn_bytes"),
    ],
)
def test_run_page_offsets(offset: int, value: int) -> None:
    assert offset == value


def test_io_format_is_the_headers() -> None:
    fields = [
        lib.RUN_IO,
        lib.RUN_IO_SIZE,
        lib.RUN_IO_PORT,
        lib.RUN_IO_COUNT,
        lib.RUN_IO_DATA_OFFSET,
    ]
    assert [field - lib.RUN_IO for field in fields] == [0, 1, 2, 4, 8]
    assert IO_FORMAT.size == 16


def test_mmio_format_is_the_headers() -> None:
    fields = [lib.RUN_MMIO, lib.RUN_MMIO_DATA, lib.RUN_MMIO_LEN, lib.RUN_MMIO_IS_WRITE]
    assert [field - lib.RUN_MMIO for field in fields] == [0, 8, 16, 20]
    assert MMIO_FORMAT.size == 21
