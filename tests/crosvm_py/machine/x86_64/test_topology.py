# SPDX-License-Identifier: BSD-3-Clause
"""Arrangements of vCPUs, read from CPUID as a kernel reads them."""

from __future__ import annotations

import itertools

import pytest

from crosvm_py.config import Topology, one_package
from crosvm_py.machine.x86_64.cpuid import CpuidTemplate, physical_address_bits
from kvm.x86_64 import CpuidEntry
from tests.crosvm_py.machine.x86_64.test_cpuid import AMD, INTEL, host

FLAT = [one_package(cpus) for cpus in (1, 2, 3, 254)]
OTHERS = [
    Topology(2, 2, 1, 1),
    Topology(1, 1, 1, 4),
    Topology(2, 3, 2, 2),
    Topology(1, 6, 1, 3),
    Topology(1, 5, 3, 1),
]


def leaves_of(
    topology: Topology, index: int, vendor: tuple[int, int, int], address_bits: int = 0
) -> dict[tuple[int, int], CpuidEntry]:
    template = CpuidTemplate(
        host(vendor), topology, tsc_deadline_timer=True, address_bits=address_bits
    )
    entries = template.for_vcpu(topology.apic_id(index))
    return {(entry.function, entry.subleaf): entry for entry in entries}


def places(topology: Topology) -> list[tuple[int, ...]]:
    """Return (package, die, core, thread) of each vCPU, in order."""
    counts = (topology.packages, topology.dies, topology.cores, topology.threads)
    return list(itertools.product(*map(range, counts)))


@pytest.mark.parametrize("topology", FLAT)
def test_one_package_has_an_id_for_each_number(topology: Topology) -> None:
    count = topology.per_package
    assert [topology.apic_id(index) for index in range(count)] == list(range(count))


@pytest.mark.parametrize("topology", [*FLAT, *OTHERS])
def test_ids_tell_where_a_vcpu_is(topology: Topology) -> None:
    widths = (
        topology.per_package_bits,
        topology.per_die_bits,
        topology.per_core_bits,
    )
    for index, place in enumerate(places(topology)):
        apic_id = topology.apic_id(index)
        package, die, core = (apic_id >> width for width in widths)
        die -= package << widths[0] - widths[1]
        core -= apic_id >> widths[1] << widths[1] - widths[2]
        assert (package, die, core, apic_id & (1 << widths[2]) - 1) == place


@pytest.mark.parametrize("vendor", [INTEL, AMD], ids=["intel", "amd"])
@pytest.mark.parametrize("topology", [*FLAT, *OTHERS])
def test_levels_are_those_of_the_topology(topology: Topology, vendor: tuple[int, int, int]) -> None:
    seen = leaves_of(topology, 0, vendor)
    for leaf in (0xB, 0x1F):
        levels = []
        for subleaf in itertools.count():
            entry = seen[leaf, subleaf]
            if not entry.ecx >> 8:
                break
            levels.append((entry.ecx >> 8, entry.eax, entry.ebx))
        package = (topology.per_package_bits, topology.per_package)
        wanted = [(1, topology.per_core_bits, topology.threads)]
        if leaf == 0x1F and topology.dies > 1:
            wanted += [(2, topology.per_die_bits, topology.per_die), (5, *package)]
        else:
            wanted += [(2, *package)]
        assert levels == wanted


@pytest.mark.parametrize("topology", [*FLAT, *OTHERS])
def test_amd_leaves_name_core_node_and_threads(topology: Topology) -> None:
    for index, (package, die, core, _thread) in enumerate(places(topology)):
        seen = leaves_of(topology, index, AMD)
        entry = seen[0x8000_001E, 0]
        assert entry.eax == topology.apic_id(index)
        assert entry.ebx >> 8 == topology.threads - 1
        core_bits = topology.per_die_bits - topology.per_core_bits
        assert entry.ebx & 0xFF == die << core_bits | core
        die_bits = topology.per_package_bits - topology.per_die_bits
        assert entry.ecx == (package << die_bits | die) | topology.dies - 1 << 8
        sizes = seen[0x8000_0008, 0].ecx
        assert (sizes & 0xFF, sizes >> 12 & 0xF) == (
            topology.per_package - 1,
            topology.per_package_bits,
        )


@pytest.mark.parametrize("topology", [*FLAT, *OTHERS])
def test_die_shares_the_last_cache_and_a_core_the_others(topology: Topology) -> None:
    seen = leaves_of(topology, 0, INTEL)
    caches = [entry for (leaf, _), entry in seen.items() if leaf == 4 and entry.eax & 0x1F]
    assert caches
    for entry in caches:
        is_last = entry.eax >> 5 & 7 == 3
        bits = topology.per_die_bits if is_last else topology.per_core_bits
        assert entry.eax >> 14 & 0xFFF == (1 << bits) - 1
        core_bits = topology.per_package_bits - topology.per_core_bits
        assert entry.eax >> 26 == min((1 << core_bits) - 1, 0x3F)


@pytest.mark.parametrize(("most", "bits"), [(0, 0x30), (46, 46), (52, 0x30)])
def test_physical_addresses_have_as_many_bits_as_they_may(most: int, bits: int) -> None:
    leaf = CpuidEntry(0x8000_0008, 0, 0, 0x30_3930, 0, 0, 0)
    supported = [entry for entry in host(AMD) if entry.function != leaf.function] + [leaf]
    assert physical_address_bits(supported, most) == bits
    template = CpuidTemplate(supported, one_package(1), tsc_deadline_timer=True, address_bits=most)
    (entry,) = (entry for entry in template.for_vcpu(0) if entry.function == leaf.function)
    assert entry.eax == bits << 16 | 0x3900 | bits
