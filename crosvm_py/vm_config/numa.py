# SPDX-License-Identifier: BSD-3-Clause
"""Memory zones and NUMA nodes of a configuration: what this program can do of them, and back."""

from __future__ import annotations

from crosvm_py.config import POOL_PAGE_BYTES, MemoryZone, NumaNode
from crosvm_py.vm_config.machine import MemoryZoneConfig, NumaConfig, NumaDistance
from crosvm_py.vm_config.problem import FAILED, Problem
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.config import RunConfig
    from crosvm_py.vm_config.machine import MemoryConfig
    from crosvm_py.vm_config.schema import VmConfig

# As many as a stock kernel takes on x86 (CONFIG_NODES_SHIFT=6). ACPI's tables have room for them.
MAX_NODES: Final = 64
MAX_ZONES: Final = 64
# Nodes of a host, at most (CONFIG_NODES_SHIFT=10).
MAX_HOST_NODES: Final = 1024
# What memory that nobody divides is called in Cloud Hypervisor.
WHOLE_MEMORY: Final = "mem0"
_LEAST_DISTANCE: Final = 11  # to another node; 10 is the distance to itself (ACPI 6.5 §5.2.17)
_TO_ITSELF: Final = 10
_PAGE_BYTES: Final = 4096


def zones_of(config: VmConfig) -> tuple[MemoryZone, ...]:
    """Return the zones as the vmm has them; one of all memory where a node names that."""
    zones = config.memory.zones
    if not zones and any(node.memory_zones for node in config.numa or ()):
        return (MemoryZone(WHOLE_MEMORY, config.memory.size),)
    return tuple(MemoryZone(zone.id, zone.size, zone.host_numa_node) for zone in zones or ())


def nodes_of(config: VmConfig) -> tuple[NumaNode, ...]:
    """Return the nodes as the vmm has them."""
    return tuple(
        NumaNode(
            number=node.guest_numa_id,
            cpus=node.cpus or (),
            zones=node.memory_zones or (),
            distances=tuple(
                (each.destination, each.distance)
                for each in node.distances or ()
                if each.destination != node.guest_numa_id
            ),
            pci_segments=node.pci_segments or (),
        )
        for node in config.numa or ()
    )


def zone_configs(config: RunConfig) -> tuple[MemoryZoneConfig, ...] | None:
    """Return the zones as the schema has them."""
    return (
        tuple(
            MemoryZoneConfig(id=zone.name, size=zone.size_bytes, host_numa_node=zone.host_node)
            for zone in config.zones
        )
        or None
    )


def node_configs(config: RunConfig) -> tuple[NumaConfig, ...] | None:
    """Return the nodes as the schema has them."""
    return (
        tuple(
            NumaConfig(
                guest_numa_id=node.number,
                cpus=node.cpus or None,
                memory_zones=node.zones or None,
                distances=tuple(
                    NumaDistance(destination=there, distance=distance)
                    for there, distance in node.distances
                )
                or None,
                pci_segments=node.pci_segments or None,
            )
            for node in config.numa
        )
        or None
    )


def numa_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what of zones and nodes makes no sense here."""
    yield from _zones(config.memory)
    nodes = config.numa or ()
    numbers = {node.guest_numa_id for node in nodes}
    if nodes and 0 not in numbers:
        yield _problem("numa", "node 0 is missing: what no other node names belongs to it")
    cpus: set[int] = set()
    for index, node in enumerate(nodes):
        place = f"numa[{index}]"
        if node.guest_numa_id >= MAX_NODES:
            text = f"{node.guest_numa_id} is more than {MAX_NODES - 1}"
            yield _problem(f"{place}.guest_numa_id", text)
        yield from _cpus(f"{place}.cpus", node, config.cpus.max_vcpus, cpus)
        yield from _named_zones(f"{place}.memory_zones", node, config.memory)
        for at, each in enumerate(node.distances or ()):
            own = each.destination == node.guest_numa_id
            yield from _distance(f"{place}.distances[{at}]", each, numbers, own=own)


def _zones(memory: MemoryConfig) -> Iterator[Problem]:
    count = len(memory.zones or ())
    if count > MAX_ZONES:
        yield _problem("memory.zones", f"{count} are above the limit of {MAX_ZONES}")
    page = (memory.hugepage_size or POOL_PAGE_BYTES) if memory.hugepages else _PAGE_BYTES
    for index, zone in enumerate(memory.zones or ()):
        place = f"memory.zones[{index}]"
        if page and zone.size % page:
            yield _problem(f"{place}.size", f"{zone.size} bytes is not a multiple of {page}")
        if (zone.host_numa_node or 0) >= MAX_HOST_NODES:
            text = f"no host has a node {zone.host_numa_node}"
            yield _problem(f"{place}.host_numa_node", text)


def _cpus(place: str, node: NumaConfig, most: int, taken: set[int]) -> Iterator[Problem]:
    for cpu in node.cpus or ():
        if cpu >= most:
            yield _problem(place, f"there is no vCPU {cpu}: max_vcpus is {most}")
        elif cpu in taken:
            yield _problem(place, f"vCPU {cpu} is there twice, or in another node, too")
        taken.add(cpu)


def _named_zones(place: str, node: NumaConfig, memory: MemoryConfig) -> Iterator[Problem]:
    known = {zone.id for zone in memory.zones or ()} or {WHOLE_MEMORY}
    for name in node.memory_zones or ():
        if name not in known:
            yield _problem(place, f"no memory zone has the id {name!r:.40}")


def _distance(place: str, each: NumaDistance, numbers: set[int], *, own: bool) -> Iterator[Problem]:
    if each.destination not in numbers:
        yield _problem(place, f"there is no node {each.destination}")
    elif own and each.distance != _TO_ITSELF:
        yield _problem(place, f"a node is {_TO_ITSELF} from itself, not {each.distance}")
    elif not own and each.distance < _LEAST_DISTANCE:
        text = f"{each.distance} is less than {_LEAST_DISTANCE}, the least from another node"
        yield _problem(place, text)


def _problem(place: str, text: str) -> Problem:
    return Problem(place, text, FAILED)
