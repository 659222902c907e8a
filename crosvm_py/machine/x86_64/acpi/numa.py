# SPDX-License-Identifier: BSD-3-Clause
"""The NUMA nodes of the guest: which CPUs and memory belong together, and how far nodes are apart.

The SRAT (ACPI 6.5 §5.2.16) has the node of each CPU and of each range of memory; the SLIT
(§5.2.17) has the distance from each node to each other. In AML it is ``_PXM`` (§6.2.14).
"""

from __future__ import annotations

from struct import pack

from crosvm_py.machine.x86_64.acpi.madt import FIRST_X2APIC_ID
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crosvm_py.config import MemoryZone, NumaNode
    from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu
    from sys_util.guest_memory import MemoryRegion

_ENABLED: Final = 1 << 0
_HOT_PLUGGABLE: Final = 1 << 1

# Where nobody says how far nodes are apart. Linux takes no less than 11 from one to another.
_TO_ITSELF: Final = 10
_TO_ANOTHER: Final = 20


class NodeMemory(NamedTuple):
    """A range of memory and its node; one that is ``hot`` may come later."""

    gpa: int
    size_bytes: int
    node: int
    hot: bool = False


class AcpiNodes(NamedTuple):
    """The nodes as the tables have them; whatever is not named here belongs to node 0."""

    cpus: dict[int, int]  # from the number of a CPU
    memory: tuple[NodeMemory, ...]
    segments: dict[int, int]  # from the number of a PCI segment
    distances: tuple[bytes, ...]


def acpi_nodes(
    nodes: Sequence[NumaNode], zones: Sequence[MemoryZone], regions: Iterable[MemoryRegion]
) -> AcpiNodes:
    """Return what the tables say of ``nodes``; zones lie behind each other in ``regions``."""
    return AcpiNodes(
        cpus={cpu: node.number for node in nodes for cpu in node.cpus},
        memory=tuple(_memory(nodes, zones, regions)),
        segments={segment: node.number for node in nodes for segment in node.pci_segments},
        distances=_distances(nodes),
    )


def _memory(
    nodes: Sequence[NumaNode], zones: Sequence[MemoryZone], regions: Iterable[MemoryRegion]
) -> Iterator[NodeMemory]:
    """Return the parts of each region. Memory that can come later belongs to node 0."""
    node_of = {zone: node.number for node in nodes for zone in node.zones}
    for region in regions:
        gpa, size_bytes, first, block_bytes = region
        if block_bytes or not zones:
            yield NodeMemory(gpa, size_bytes, 0, hot=block_bytes > 0)
            continue
        start = 0
        for zone in zones:
            low, high = max(start, first), min(start + zone.size_bytes, first + size_bytes)
            if low < high:
                yield NodeMemory(gpa + low - first, high - low, node_of.get(zone.name, 0))
            start += zone.size_bytes


def _distances(nodes: Sequence[NumaNode]) -> tuple[bytes, ...]:
    """Return a row for each number up to the last node's."""
    told = {node.number: dict(node.distances) for node in nodes}
    numbers = range(max(told) + 1)
    return tuple(
        bytes(
            _TO_ITSELF if here == there else told.get(here, {}).get(there, _TO_ANOTHER)
            for there in numbers
        )
        for here in numbers
    )


def srat_body(cpus: Iterable[AcpiCpu], nodes: AcpiNodes) -> bytes:
    """Return the SRAT without its header: every CPU that there can be, and all memory."""
    entries = [pack("<I8x", 1)]
    entries += [_cpu(cpu, cpu.node or 0) for cpu in cpus]
    entries += [_range(memory) for memory in nodes.memory]
    return b"".join(entries)


def _cpu(cpu: AcpiCpu, node: int) -> bytes:
    """Return a CPU's entry (§5.2.16.1, §5.2.16.3); its APIC id is as the MADT has it."""
    if cpu.apic_id < FIRST_X2APIC_ID:
        low, high = node & 0xFF, (node >> 8).to_bytes(3, "little")
        return pack("<BBBBIB3sI", 0, 16, low, cpu.apic_id, _ENABLED, 0, high, 0)
    return pack("<BBHIIII4x", 2, 24, 0, node, cpu.apic_id, _ENABLED, 0)


def _range(memory: NodeMemory) -> bytes:
    """Return the entry of a range (§5.2.16.2)."""
    flags = _ENABLED | _HOT_PLUGGABLE if memory.hot else _ENABLED
    return pack("<BBIHQQII8x", 1, 40, memory.node, 0, memory.gpa, memory.size_bytes, 0, flags)


def slit_body(nodes: AcpiNodes) -> bytes:
    """Return the SLIT without its header."""
    return pack("<Q", len(nodes.distances)) + b"".join(nodes.distances)
