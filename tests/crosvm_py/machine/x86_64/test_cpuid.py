# SPDX-License-Identifier: BSD-3-Clause
"""CPUID leaves of Intel and AMD hosts, as one guest processor after the other sees them."""

from __future__ import annotations

import pytest

from crosvm_py.config import one_package
from crosvm_py.machine.x86_64.cpuid import CpuidTemplate, physical_address_bits
from kvm.x86_64 import CpuidEntry

INTEL = (0x756E_6547, 0x6C65_746E, 0x4965_6E69)
AMD = (0x6874_7541, 0x444D_4163, 0x6974_6E65)


def leaf(
    function: int, eax: int = 0, ebx: int = 0, ecx: int = 0, edx: int = 0, *, subleaf: int = 0
) -> CpuidEntry:
    return CpuidEntry(function, subleaf, 0, eax, ebx, ecx, edx)


def host(vendor: tuple[int, int, int], highest: int = 0x1F) -> list[CpuidEntry]:
    ebx, ecx, edx = vendor
    return [
        leaf(0, highest, ebx, ecx, edx),
        leaf(1, 0xA10F11, 0x0704_0800, 0xFFFF_FFFF & ~(1 << 31), 0x178B_FBFF),
        leaf(4, 0x1C00_4121, subleaf=0),
        leaf(4, 0x1C03_C163, subleaf=3),
        leaf(4, 0, subleaf=4),
        leaf(0xA, 0x0730_0404, 1, 2, 3),
        leaf(0xB, 1, 2, 0x100, 7),
        leaf(0xB, 4, 8, 0x201, 7, subleaf=1),
        leaf(0x4000_0000, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D),
        leaf(0x8000_0001, 0, 0, 0x1FFF_FFFF, 0),
        *(leaf(function) for function in (0x8000_0002, 0x8000_0003, 0x8000_0004)),
        leaf(0x8000_0008, 0x3030, 0, 0x7007),
        leaf(0x8000_000A, 1, 2, 0, 3),
        leaf(0x8000_001D, 0x4163, subleaf=3),
        leaf(0x8000_001E, 7, 0x107, 0x1, 0),
        leaf(0x8000_0022, 1, 2, 3, 4),
    ]


def see(
    supported: list[CpuidEntry], cpus: int, apic_id: int, *, tsc_deadline_timer: bool = True
) -> dict[tuple[int, int], CpuidEntry]:
    template = CpuidTemplate(supported, one_package(cpus), tsc_deadline_timer=tsc_deadline_timer)
    leaves = template.for_vcpu(apic_id)
    seen = {(entry.function, entry.subleaf): entry for entry in leaves}
    assert len(seen) == len(leaves)
    return seen


@pytest.mark.parametrize("apic_id", [0, 1, 253])
@pytest.mark.parametrize("vendor", [INTEL, AMD], ids=["intel", "amd"])
def test_every_leaf_agrees_on_the_apic_id(vendor: tuple[int, int, int], apic_id: int) -> None:
    seen = see(host(vendor), 254, apic_id)
    assert seen[1, 0].ebx >> 24 == apic_id
    for function in (0xB, 0x1F):
        assert [seen[function, subleaf].edx for subleaf in range(3)] == [apic_id] * 3


@pytest.mark.parametrize(
    ("cpus", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)], ids=str
)
def test_topology_is_a_package_of_single_threaded_cores(cpus: int, bits: int) -> None:
    seen = see(host(INTEL), cpus, 0)
    for function in (0xB, 0x1F):
        assert seen[function, 0][3:6] == (0, 1, 0x100)
        assert seen[function, 1][3:6] == (bits, cpus, 0x201)
        assert seen[function, 2][3:6] == (0, 0, 2)
    assert seen[1, 0].edx >> 28 & 1 == (cpus > 1)


def test_old_host_gets_no_topology_leaves() -> None:
    seen = see(host(INTEL, highest=0xA), 2, 0)
    assert not {function for function, _ in seen} & {0xB, 0x1F}


def test_topology_leaf_v2_needs_a_host_that_counts_that_far() -> None:
    seen = see(host(AMD, highest=0x10), 2, 0)
    assert (0xB, 1) in seen
    assert (0x1F, 0) not in seen


def test_caches_are_private_but_for_the_last_level() -> None:
    seen = see(host(INTEL), 4, 0)
    assert seen[4, 0].eax >> 14 & 0xFFF == 0
    assert seen[4, 3].eax >> 14 & 0xFFF == 3
    assert seen[4, 3].eax >> 26 == 3
    assert seen[4, 3].eax & 0x3FFF == 0x1C03_C163 & 0x3FFF
    assert seen[4, 4].eax == 0
    assert see(host(AMD), 4, 0)[0x8000_001D, 3].eax == 0x163 | 3 << 14


def test_amd_sizes_and_node() -> None:
    seen = see(host(AMD), 6, 5)
    assert seen[0x8000_0008, 0].ecx == 5 | 3 << 12
    assert seen[0x8000_001E, 0][3:7] == (5, 5, 0, 0)
    assert seen[0x8000_0001, 0].ecx & 2
    assert see(host(AMD), 1, 0)[0x8000_0001, 0].ecx & 2 == 0
    assert see(host(INTEL), 6, 5)[0x8000_0008, 0].ecx == 0x7007


def test_hypervisor_and_timer_are_shown() -> None:
    seen = see(host(INTEL), 1, 0)
    assert seen[1, 0].ecx >> 31 & 1
    assert seen[1, 0].ecx >> 24 & 1
    assert seen[0x4000_0000, 0].ebx == 0x4B4D_564B


def test_timer_is_only_shown_where_kvm_has_it() -> None:
    supported = [entry._replace(ecx=0) if entry.function == 1 else entry for entry in host(INTEL)]
    assert see(supported, 1, 0)[1, 0].ecx >> 24 & 1
    assert see(supported, 1, 0, tsc_deadline_timer=False)[1, 0].ecx >> 24 & 1 == 0


@pytest.mark.parametrize("vendor", [INTEL, AMD], ids=["intel", "amd"])
def test_nested_virtualization_and_counters_are_hidden(vendor: tuple[int, int, int]) -> None:
    seen = see(host(vendor), 2, 0)
    assert seen[1, 0].ecx & (1 << 5 | 1 << 15) == 0
    assert seen[0x8000_0001, 0].ecx & (1 << 2 | 1 << 23 | 1 << 24 | 1 << 28) == 0
    for function in (0xA, 0x8000_000A, 0x8000_0022):
        assert seen[function, 0][3:7] == (0, 0, 0, 0)


def test_physical_address_bits() -> None:
    assert physical_address_bits(host(AMD)) == 48
    assert physical_address_bits([]) == 36


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        pytest.param((1, 2, 3, 4), (1, 2, 3, 4), id="named"),
        pytest.param(None, (0, 0, 0, 0), id="nameless"),
    ],
)
def test_brand_is_the_hosts(
    answer: tuple[int, int, int, int] | None, seen: tuple[int, int, int, int]
) -> None:
    template = CpuidTemplate(
        host(AMD), one_package(1), tsc_deadline_timer=True, host=lambda _leaf: answer
    )
    brands = [entry[3:7] for entry in template.for_vcpu(0) if 0x8000_0002 <= entry[0] < 0x8000_0005]
    assert brands == [seen] * 3
