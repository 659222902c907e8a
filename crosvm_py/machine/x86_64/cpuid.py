# SPDX-License-Identifier: BSD-3-Clause
"""What CPUID tells the guest: the features that KVM supports here, and a topology of our own.

Unless the user has asked for another topology, all vCPUs are cores of one package, with one thread
each, and a vCPU's APIC id is its index. Nested
virtualization and performance counters are hidden, because they are a large part of KVM's attack
surface and our guests do not need them.
"""

from __future__ import annotations

from kvm.x86_64 import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, CpuidEntry, host_cpuid
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from crosvm_py.config import Topology

LEAF_VENDOR: Final = 0x0
LEAF_FEATURES: Final = 0x1
LEAF_INTEL_CACHES: Final = 0x4
LEAF_PERFORMANCE: Final = 0xA
LEAF_TOPOLOGY: Final = 0xB
LEAF_TOPOLOGY_V2: Final = 0x1F
LEAF_AMD_FEATURES: Final = 0x8000_0001
LEAVES_BRAND: Final = (0x8000_0002, 0x8000_0003, 0x8000_0004)
LEAF_AMD_SIZES: Final = 0x8000_0008
LEAF_AMD_SVM: Final = 0x8000_000A
LEAF_AMD_CACHES: Final = 0x8000_001D
LEAF_AMD_TOPOLOGY: Final = 0x8000_001E
LEAF_AMD_PERFORMANCE: Final = 0x8000_0022

# Leaf 1.
ECX_VMX: Final = 1 << 5
ECX_PDCM: Final = 1 << 15
ECX_X2APIC: Final = 1 << 21
ECX_TSC_DEADLINE: Final = 1 << 24
ECX_HYPERVISOR: Final = 1 << 31
EDX_HTT: Final = 1 << 28

# Leaf 0x80000001.
ECX_CMP_LEGACY: Final = 1 << 1
ECX_SVM: Final = 1 << 2
ECX_PERFCTR_CORE: Final = 1 << 23
ECX_PERFCTR_NB: Final = 1 << 24
ECX_PERFCTR_LLC: Final = 1 << 28

# Level types of leaves 0xB and 0x1F, in bits 8 to 15 of ECX.
LEVEL_SMT: Final = 1
LEVEL_CORE: Final = 2
LEVEL_DIE: Final = 5

_LAST_LEVEL_CACHE: Final = 3
_DEFAULT_PHYSICAL_ADDRESS_BITS: Final = 36
_AMD_VENDORS: Final = frozenset({b"AuthenticAMD", b"HygonGenuine"})


def physical_address_bits(supported: Iterable[CpuidEntry], most: int = 0) -> int:
    """Return the width of a guest-physical address in bits, ``most`` at most unless that is 0."""
    bits = _DEFAULT_PHYSICAL_ADDRESS_BITS
    for entry in supported:
        if entry.function == LEAF_AMD_SIZES:
            bits = entry.eax & 0xFF
    return min(bits, most) if most else bits


def _is_amd(supported: Iterable[CpuidEntry]) -> bool:
    for entry in supported:
        if entry.function == LEAF_VENDOR:
            words = (entry.ebx, entry.edx, entry.ecx)
            return b"".join(word.to_bytes(4, "little") for word in words) in _AMD_VENDORS
    return False


class CpuidTemplate:
    """The CPUID leaves, made once for all vCPUs; ``for_vcpu`` fills in the APIC id."""

    def __init__(
        self,
        supported: Iterable[CpuidEntry],
        topology: Topology,
        *,
        tsc_deadline_timer: bool,
        address_bits: int = 0,
        host: Callable[[int], tuple[int, int, int, int] | None] = host_cpuid,
    ) -> None:
        """``address_bits`` is the most that the guest may have of a physical address, or 0."""
        leaves = tuple(supported)
        self._topology = topology
        self._address_bits = address_bits
        self._amd = _is_amd(leaves)
        self._tsc_deadline_timer = tsc_deadline_timer
        self._host = host
        self._changes = {
            LEAF_FEATURES: self._features,
            LEAF_INTEL_CACHES: self._intel_caches,
            LEAF_AMD_FEATURES: self._amd_features,
            LEAF_AMD_SIZES: self._sizes,
            LEAF_AMD_CACHES: self._caches,
            LEAF_PERFORMANCE: self._nothing,
            LEAF_AMD_SVM: self._nothing,
            LEAF_AMD_PERFORMANCE: self._nothing,
            **dict.fromkeys(LEAVES_BRAND, self._brand),
        }
        self._leaves = tuple(self._common(leaves))

    def for_vcpu(self, apic_id: int) -> list[CpuidEntry]:
        """Return every leaf of the vCPU with this APIC id."""
        return [self._personal(entry, apic_id) for entry in self._leaves]

    def _common(self, leaves: tuple[CpuidEntry, ...]) -> Iterator[CpuidEntry]:
        highest = max((e.eax for e in leaves if e.function == LEAF_VENDOR), default=0)
        topology = (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2)
        for entry in leaves:
            if entry.function in topology:
                continue
            change = self._changes.get(entry.function)
            yield change(entry) if change else entry
        for function in topology:
            if function <= highest:
                yield from self._levels(function)

    def _levels(self, function: int) -> Iterator[CpuidEntry]:
        """Describe each level: the bits of an id up to it, and its threads (SDM volume 2, CPUID).

        Leaf 0xB knows threads and cores only, so its cores are those of all dies.
        """
        found, flags = self._topology, KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        levels = [(LEVEL_SMT, found.per_core_bits, found.threads)]
        if function == LEAF_TOPOLOGY_V2 and found.dies > 1:
            levels.append((LEVEL_CORE, found.per_die_bits, found.per_die))
            levels.append((LEVEL_DIE, found.per_package_bits, found.per_package))
        else:
            levels.append((LEVEL_CORE, found.per_package_bits, found.per_package))
        for at, (level, bits, threads) in enumerate(levels):
            yield CpuidEntry(function, at, flags, bits, threads, at | level << 8, 0)
        yield CpuidEntry(function, len(levels), flags, 0, 0, len(levels), 0)

    def _personal(self, entry: CpuidEntry, apic_id: int) -> CpuidEntry:
        function = entry.function
        if function == LEAF_FEATURES:
            return entry._replace(ebx=entry.ebx & 0x00FF_FFFF | apic_id << 24)
        if function in (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2):
            return entry._replace(edx=apic_id)
        if function == LEAF_AMD_TOPOLOGY and self._amd:
            return self._amd_place(entry, apic_id)
        return entry

    def _amd_place(self, entry: CpuidEntry, apic_id: int) -> CpuidEntry:
        """Say which core of its package this is, and which node of all."""
        found = self._topology
        core = (apic_id & (1 << found.per_package_bits) - 1) >> found.per_core_bits
        ebx = core & 0xFF | found.threads - 1 << 8
        ecx = apic_id >> found.per_die_bits & 0xFF | found.dies - 1 << 8
        return entry._replace(eax=apic_id, ebx=ebx, ecx=ecx, edx=0)

    def _features(self, entry: CpuidEntry) -> CpuidEntry:
        ecx = entry.ecx & ~(ECX_VMX | ECX_PDCM) | ECX_HYPERVISOR | ECX_X2APIC
        if self._tsc_deadline_timer:
            ecx |= ECX_TSC_DEADLINE
        found = self._topology
        edx = entry.edx | EDX_HTT if found.per_package > 1 else entry.edx & ~EDX_HTT
        # On AMD the field is the number of threads, on Intel the number of ids in a package.
        threads = found.per_package if self._amd else min(1 << found.per_package_bits, 0xFF)
        ebx = entry.ebx & 0xFF00_FFFF | threads << 16
        return entry._replace(ebx=ebx, ecx=ecx, edx=edx)

    def _intel_caches(self, entry: CpuidEntry) -> CpuidEntry:
        if not entry.eax & 0x1F:  # cache type 0: there are no more caches
            return entry
        core_bits = self._topology.per_package_bits - self._topology.per_core_bits
        cores = min((1 << core_bits) - 1, 0x3F)
        entry = self._caches(entry)
        return entry._replace(eax=entry.eax & 0x03FF_FFFF | cores << 26)

    def _caches(self, entry: CpuidEntry) -> CpuidEntry:
        """Say that a die shares the last-level cache, and that each core has the others alone."""
        if not entry.eax & 0x1F:
            return entry
        shared = entry.eax >> 5 & 0x7 >= _LAST_LEVEL_CACHE
        bits = self._topology.per_die_bits if shared else self._topology.per_core_bits
        return entry._replace(eax=entry.eax & ~(0xFFF << 14) | (1 << bits) - 1 << 14)

    def _amd_features(self, entry: CpuidEntry) -> CpuidEntry:
        hidden = ECX_SVM | ECX_PERFCTR_CORE | ECX_PERFCTR_NB | ECX_PERFCTR_LLC
        ecx = entry.ecx & ~(hidden | ECX_CMP_LEGACY)
        if self._amd and self._topology.per_package > 1:
            ecx |= ECX_CMP_LEGACY
        return entry._replace(ecx=ecx)

    def _sizes(self, entry: CpuidEntry) -> CpuidEntry:
        """Limit physical addresses: bits 0 to 7, and for guests 16 to 23 where they are not 0."""
        eax, most = entry.eax, self._address_bits
        for shift in (0, 16):
            if most and eax >> shift & 0xFF > most:
                eax = eax & ~(0xFF << shift) | most << shift
        if not self._amd:
            return entry._replace(eax=eax)
        found = self._topology
        cores = found.per_package - 1 | found.per_package_bits << 12
        return entry._replace(eax=eax, ecx=entry.ecx & ~0xF0FF | cores)

    def _brand(self, entry: CpuidEntry) -> CpuidEntry:
        """Fill in the processor's name from the host; KVM leaves it empty."""
        eax, ebx, ecx, edx = self._host(entry.function) or (0, 0, 0, 0)
        return entry._replace(eax=eax, ebx=ebx, ecx=ecx, edx=edx)

    def _nothing(self, entry: CpuidEntry) -> CpuidEntry:
        return entry._replace(eax=0, ebx=0, ecx=0, edx=0)
