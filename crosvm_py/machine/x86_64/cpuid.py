# SPDX-License-Identifier: BSD-3-Clause
"""What CPUID tells the guest: the features that KVM supports here, and a topology of our own.

All vCPUs are cores of one package, with one thread each; a vCPU's APIC id is its index. Nested
virtualization and performance counters are hidden, because they are a large part of KVM's attack
surface and our guests do not need them.
"""

from __future__ import annotations

from kvm.x86_64 import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, CpuidEntry, host_cpuid
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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

_LAST_LEVEL_CACHE: Final = 3
_DEFAULT_PHYSICAL_ADDRESS_BITS: Final = 36
_AMD_VENDORS: Final = frozenset({b"AuthenticAMD", b"HygonGenuine"})


def physical_address_bits(supported: Iterable[CpuidEntry]) -> int:
    """Return the width of a guest-physical address in bits."""
    for entry in supported:
        if entry.function == LEAF_AMD_SIZES:
            return entry.eax & 0xFF
    return _DEFAULT_PHYSICAL_ADDRESS_BITS


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
        cpus: int,
        *,
        tsc_deadline_timer: bool,
        host: Callable[[int], tuple[int, int, int, int] | None] = host_cpuid,
    ) -> None:
        leaves = tuple(supported)
        self._cpus = cpus
        self._core_bits = (cpus - 1).bit_length()
        self._amd = _is_amd(leaves)
        self._tsc_deadline_timer = tsc_deadline_timer
        self._host = host
        self._changes = {
            LEAF_FEATURES: self._features,
            LEAF_INTEL_CACHES: self._intel_caches,
            LEAF_AMD_FEATURES: self._amd_features,
            LEAF_AMD_SIZES: self._amd_sizes,
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
        """Describe one thread per core, and all cores in one package (SDM volume 2, CPUID)."""
        flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        yield CpuidEntry(function, 0, flags, 0, 1, LEVEL_SMT << 8, 0)
        core = 1 | LEVEL_CORE << 8
        yield CpuidEntry(function, 1, flags, self._core_bits, self._cpus, core, 0)
        yield CpuidEntry(function, 2, flags, 0, 0, 2, 0)

    def _personal(self, entry: CpuidEntry, apic_id: int) -> CpuidEntry:
        function = entry.function
        if function == LEAF_FEATURES:
            return entry._replace(ebx=entry.ebx & 0x00FF_FFFF | apic_id << 24)
        if function in (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2):
            return entry._replace(edx=apic_id)
        if function == LEAF_AMD_TOPOLOGY and self._amd:
            return entry._replace(eax=apic_id, ebx=apic_id & 0xFF, ecx=0, edx=0)
        return entry

    def _features(self, entry: CpuidEntry) -> CpuidEntry:
        ecx = entry.ecx & ~(ECX_VMX | ECX_PDCM) | ECX_HYPERVISOR | ECX_X2APIC
        if self._tsc_deadline_timer:
            ecx |= ECX_TSC_DEADLINE
        edx = entry.edx | EDX_HTT if self._cpus > 1 else entry.edx & ~EDX_HTT
        # On AMD the field is the number of threads, on Intel the number of ids in a package.
        threads = self._cpus if self._amd else min(1 << self._core_bits, 0xFF)
        ebx = entry.ebx & 0xFF00_FFFF | threads << 16
        return entry._replace(ebx=ebx, ecx=ecx, edx=edx)

    def _intel_caches(self, entry: CpuidEntry) -> CpuidEntry:
        if not entry.eax & 0x1F:  # cache type 0: there are no more caches
            return entry
        cores = min((1 << self._core_bits) - 1, 0x3F)
        entry = self._caches(entry)
        return entry._replace(eax=entry.eax & 0x03FF_FFFF | cores << 26)

    def _caches(self, entry: CpuidEntry) -> CpuidEntry:
        """Say that all vCPUs share the last-level cache, and that each has the others alone."""
        if not entry.eax & 0x1F:
            return entry
        shared = entry.eax >> 5 & 0x7 >= _LAST_LEVEL_CACHE
        sharing = (1 << self._core_bits) - 1 if shared else 0
        return entry._replace(eax=entry.eax & ~(0xFFF << 14) | sharing << 14)

    def _amd_features(self, entry: CpuidEntry) -> CpuidEntry:
        hidden = ECX_SVM | ECX_PERFCTR_CORE | ECX_PERFCTR_NB | ECX_PERFCTR_LLC
        ecx = entry.ecx & ~(hidden | ECX_CMP_LEGACY)
        if self._amd and self._cpus > 1:
            ecx |= ECX_CMP_LEGACY
        return entry._replace(ecx=ecx)

    def _amd_sizes(self, entry: CpuidEntry) -> CpuidEntry:
        if not self._amd:
            return entry
        cores = self._cpus - 1 | self._core_bits << 12
        return entry._replace(ecx=entry.ecx & ~0xF0FF | cores)

    def _brand(self, entry: CpuidEntry) -> CpuidEntry:
        """Fill in the processor's name from the host; KVM leaves it empty."""
        eax, ebx, ecx, edx = self._host(entry.function) or (0, 0, 0, 0)
        return entry._replace(eax=eax, ebx=ebx, ecx=ecx, edx=edx)

    def _nothing(self, entry: CpuidEntry) -> CpuidEntry:
        return entry._replace(eax=0, ebx=0, ecx=0, edx=0)
