# SPDX-License-Identifier: BSD-3-Clause
"""Rules for processors, memory, payload, platform and NUMA."""

from __future__ import annotations

from crosvm_py.vm_config.landlock import landlock_problems
from crosvm_py.vm_config.problem import is_power_of_two, when
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.machine import (
        CpusConfig,
        MemoryConfig,
        MemoryZoneConfig,
        NumaConfig,
        PayloadConfig,
        PlatformConfig,
    )
    from crosvm_py.vm_config.problem import Problem
    from crosvm_py.vm_config.schema import VmConfig

# Cloud Hypervisor's limit on x86_64, whatever this program can do.
MAX_VCPUS: Final = 8192
MAX_SEGMENTS: Final = 96
_MAX_THREADS: Final = 2
_MAX_BITS: Final = 64


def machine_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what is wrong with everything that is no device."""
    yield from _payload(config.payload)
    yield from _cpus(config.cpus)
    yield from _memory(config.memory)
    yield from _platform(config)
    yield from _numa(config)
    yield from landlock_problems(config)


def ram_bytes(memory: MemoryConfig) -> int:
    """Return how much memory the guest has at its start."""
    zones = memory.zones or ()
    return memory.size + sum(zone.size for zone in zones)


def segments(config: VmConfig) -> int:
    """Return how many PCI segments there are."""
    return 1 if config.platform is None else config.platform.num_pci_segments


def _payload(payload: PayloadConfig | None) -> Iterator[Problem]:
    if payload is None or not (payload.kernel or payload.firmware):
        yield from when(True, "payload", "there is nothing to boot: kernel or firmware is missing")
    elif payload.kernel is not None and payload.firmware is not None:
        yield from when(True, "payload", "kernel and firmware exclude each other")


def _cpus(cpus: CpusConfig) -> Iterator[Problem]:
    boot, most = cpus.boot_vcpus, cpus.max_vcpus
    yield from when(boot == 0, "cpus.boot_vcpus", "a VM has at least one vCPU")
    yield from when(most < boot, "cpus.max_vcpus", f"{most} is less than boot_vcpus, {boot}")
    yield from when(most > MAX_VCPUS, "cpus.max_vcpus", f"{most} is more than {MAX_VCPUS}")
    yield from when(cpus.profile != "host", "cpus.profile", f"{cpus.profile!r:.40} is not host")
    topology = cpus.topology
    if topology is None:
        return
    threads = topology.threads_per_core
    count = threads * topology.cores_per_die * topology.dies_per_package * topology.packages
    place = "cpus.topology"
    yield from when(count == 0, place, "no part of it can be 0")
    yield from when(threads > _MAX_THREADS, place, f"{threads} threads per core are more than 2")
    text = f"it has {count} vCPUs, and max_vcpus is {most}"
    yield from when(count not in (0, most), place, text)


def _memory(memory: MemoryConfig) -> Iterator[Problem]:
    zones = memory.zones or ()
    yield from _region("memory", memory)
    yield from when(
        bool(memory.size and zones), "memory.size", f"{memory.size} must be 0 where there are zones"
    )
    yield from when(not ram_bytes(memory), "memory.size", "a VM has memory")
    names = [zone.id for zone in zones]
    for index, zone in enumerate(zones):
        place = f"memory.zones[{index}]"
        yield from _region(place, zone)
        yield from when(not zone.size, f"{place}.size", "a zone has memory")
        yield from when(not zone.id, f"{place}.id", "it is empty")
        twice = zone.id in names[:index]
        yield from when(twice, f"{place}.id", f"{zone.id!r:.40} is the name of another zone")
        acpi = zone.hotplug_size is not None and memory.hotplug_method == "Acpi"
        yield from when(acpi, f"{place}.hotplug_size", "it needs hotplug_method VirtioMem")


def _region(place: str, memory: MemoryConfig | MemoryZoneConfig) -> Iterator[Problem]:
    size = memory.hugepage_size
    if size is not None:
        yield from when(not memory.hugepages, f"{place}.hugepage_size", "it needs hugepages")
        wrong = not is_power_of_two(size)
        yield from when(wrong, f"{place}.hugepage_size", f"{size} is not a power of two")
    both = memory.shared and memory.mergeable
    yield from when(both, f"{place}.mergeable", "shared and mergeable exclude each other")
    plugged, most = memory.hotplugged_size or 0, memory.hotplug_size or 0
    text = f"{plugged} is more than hotplug_size, {most}"
    yield from when(plugged > most, f"{place}.hotplugged_size", text)


def _platform(config: VmConfig) -> Iterator[Problem]:
    count = segments(config)
    yield from when(
        not 1 <= count <= MAX_SEGMENTS,
        "platform.num_pci_segments",
        f"{count} is not in 1..{MAX_SEGMENTS}",
    )
    if config.platform is not None:
        yield from _iommu(config.platform, count)
    seen: set[int] = set()
    for index, segment in enumerate(config.pci_segments or ()):
        place, number = f"pci_segments[{index}]", segment.pci_segment
        yield from _in_segments(f"{place}.pci_segment", number, count)
        yield from when(number in seen, f"{place}.pci_segment", f"segment {number} is there twice")
        seen.add(number)
        for weight in ("mmio32_aperture_weight", "mmio64_aperture_weight"):
            yield from when(not getattr(segment, weight), f"{place}.{weight}", "it cannot be 0")


def _iommu(platform: PlatformConfig, count: int) -> Iterator[Problem]:
    for index, number in enumerate(platform.iommu_segments or ()):
        yield from _in_segments(f"platform.iommu_segments[{index}]", number, count)
    bits = platform.iommu_address_width_bits
    place = "platform.iommu_address_width_bits"
    yield from when(bits > _MAX_BITS, place, f"{bits} is more than {_MAX_BITS}")
    lacks = platform.iommufd_fd is not None and not platform.iommufd
    yield from when(lacks, "platform.iommufd_fd", "it needs iommufd")


def _in_segments(place: str, number: int, count: int) -> Iterator[Problem]:
    yield from when(
        number >= count, place, f"there is no segment {number}: num_pci_segments is {count}"
    )


def _numa(config: VmConfig) -> Iterator[Problem]:
    nodes = config.numa or ()
    ids: set[int] = set()
    zones: set[str | int] = set()
    taken: set[str | int] = set()
    for index, node in enumerate(nodes):
        place, number = f"numa[{index}]", node.guest_numa_id
        twice = number in ids
        yield from when(twice, f"{place}.guest_numa_id", f"node {number} is there twice")
        ids.add(number)
        yield from _numa_segments(place, node, segments(config))
        yield from _once(f"{place}.memory_zones", node.memory_zones, zones)
        yield from _once(f"{place}.pci_segments", node.pci_segments, taken)


def _numa_segments(place: str, node: NumaConfig, count: int) -> Iterator[Problem]:
    for index, number in enumerate(node.pci_segments or ()):
        at = f"{place}.pci_segments[{index}]"
        yield from _in_segments(at, number, count)
        wrong = number == 0 and node.guest_numa_id != 0
        yield from when(wrong, at, "segment 0 belongs to node 0")


def _once(
    place: str, values: tuple[str | int, ...] | None, seen: set[str | int]
) -> Iterator[Problem]:
    for value in values or ():
        yield from when(value in seen, place, f"{value!r:.40} is in another node, too")
        seen.add(value)
