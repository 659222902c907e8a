# SPDX-License-Identifier: BSD-3-Clause
"""NUMA nodes in the tables: SRAT and SLIT as the specification has them, and nothing without."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from crosvm_py.config import MemoryZone, NumaNode
from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi import aml
from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu, contiguous_cpus
from crosvm_py.machine.x86_64.acpi.numa import (
    AcpiNodes,
    NodeMemory,
    acpi_nodes,
    slit_body,
    srat_body,
)
from crosvm_py.machine.x86_64.acpi.tables import build_acpi_tables, write_acpi_tables
from sys_util.guest_memory import MemoryRegion
from tests.crosvm_py.machine.x86_64.low_memory import LowMemory
from tests.crosvm_py.machine.x86_64.test_acpi import found_tables

GIB: Final = 1 << 30
LOW: Final = MemoryRegion(0, 3 * GIB, 0)
HIGH: Final = MemoryRegion(4 * GIB, 2 * GIB, 3 * GIB)
HOT: Final = MemoryRegion(8 * GIB, GIB, 5 * GIB, 128 << 20)
TWO: Final = (
    NumaNode(0, (0,), ("a",), ((1, 25),)),
    NumaNode(1, (1, 2), ("b",), (), (1,)),
)
ZONES: Final = (MemoryZone("a", 2 * GIB), MemoryZone("b", 2 * GIB), MemoryZone("c", GIB))


def two_nodes() -> AcpiNodes:
    return acpi_nodes(TWO, ZONES, (LOW, HIGH, HOT))


def cpus_in(nodes: AcpiNodes, *, present: int) -> list[AcpiCpu]:
    return [
        cpu._replace(enabled=cpu.number < present, node=nodes.cpus.get(cpu.number, 0))
        for cpu in contiguous_cpus(4)
    ]


def test_zones_are_cut_at_the_hole_and_what_nobody_names_belongs_to_node_0() -> None:
    assert two_nodes().memory == (
        NodeMemory(0, 2 * GIB, 0),
        NodeMemory(2 * GIB, GIB, 1),
        NodeMemory(4 * GIB, GIB, 1),
        NodeMemory(5 * GIB, GIB, 0),
        NodeMemory(8 * GIB, GIB, 0, hot=True),
    )


def test_memory_without_zones_is_whole() -> None:
    found = acpi_nodes((NumaNode(0),), (), (LOW, HIGH))
    assert found.memory == (NodeMemory(0, 3 * GIB, 0), NodeMemory(4 * GIB, 2 * GIB, 0))


def test_srat_is_as_the_specification_has_it() -> None:
    cpus = [AcpiCpu(0, 0), AcpiCpu(1, 4, enabled=False, node=1), AcpiCpu(2, 0x1FF, node=1)]
    memory = (NodeMemory(0, 3 * GIB, 0), NodeMemory(8 * GIB, GIB, 0x102, hot=True))
    body = srat_body(cpus, AcpiNodes({}, memory, {}, ()))
    expected = (
        "01000000 0000000000000000"
        "00 10 00 00 01000000 00 000000 00000000"
        "00 10 01 04 01000000 00 000000 00000000"
        "02 18 0000 01000000 ff010000 01000000 00000000 00000000"
        "01 28 00000000 0000 0000000000000000 000000c000000000 00000000 01000000 0000000000000000"
        "01 28 02010000 0000 0000000002000000 0000004000000000 00000000 03000000 0000000000000000"
    )
    assert body.hex() == expected.replace(" ", "")


def test_slit_has_a_row_for_each_number_and_defaults() -> None:
    nodes = (*TWO, NumaNode(3, distances=((0, 255),)))
    body = slit_body(acpi_nodes(nodes, (), (LOW,)))
    rows = ("0a191414", "140a1414", "14140a14", "ff14140a")
    assert body.hex() == "0400000000000000" + "".join(rows)


def test_cpus_that_can_come_and_segments_name_their_nodes() -> None:
    nodes, ram = two_nodes(), LowMemory()
    found = found_tables(
        ram,
        write_acpi_tables(
            *(ram, cpus_in(nodes, present=1)),
            hotplug=True,
            hot_cpus=True,
            dimms=True,
            windows=layout.pci_windows((1, 1)),
            nodes=nodes,
        ),
    )
    near = [aml.name("_PXM", aml.integer(node)) for node in (0, 1)]
    dsdt = found["DSDT"]
    assert [dsdt.count(each) for each in near] == [2 + 1, 2 + 1]
    assert near[1] in dsdt[dsdt.index(b"C001\x08_HID") : dsdt.index(b"C002\x08_HID")]
    assert found["SRAT"][8] == 3
    assert found["SRAT"].count(b"\x00\x10") >= 4


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "96a8d1e1bbfda287ed737e0eb1dd8bb37cb398cdb8da13537d93c7db540df58c"),
        ({"hotplug": True}, "98206833f841e6abb50715f89c98fb7b97654e0fca31938658cb97b9ee27aae3"),
        (
            {
                "hotplug": True,
                "dimms": True,
                "hot_cpus": True,
                "windows": layout.pci_windows((1, 1)),
            },
            "3ad08ee8936e6049d4c37bb0dd8e2020313c9cc525ef89444237ddc181d537eb",
        ),
    ],
    ids=["alone", "hot-plug", "everything"],
)
def test_tables_without_nodes_are_those_of_before(options: dict[str, Any], digest: str) -> None:
    """Whoever changes a table on purpose changes the digest here."""
    tables = build_acpi_tables(layout.ACPI_RSDP_GPA, contiguous_cpus(4), **options)
    assert hashlib.sha256(repr(tables).encode()).hexdigest() == digest


def test_the_most_of_everything_fits() -> None:
    numbers = range(64)
    nodes = acpi_nodes(
        [NumaNode(number, zones=(f"{number}",)) for number in numbers],
        [MemoryZone(f"{number}", 1 << 20) for number in numbers],
        (MemoryRegion(0, 32 << 20, 0), MemoryRegion(4 * GIB, 32 << 20, 32 << 20), HOT),
    )
    cpus = [cpu._replace(enabled=not cpu.number, node=63) for cpu in contiguous_cpus(254)]
    tables = build_acpi_tables(
        *(layout.ACPI_RSDP_GPA, cpus),
        hotplug=True,
        hot_cpus=True,
        dimms=True,
        watchdog=True,
        windows=layout.pci_windows((1,) * 16),
        nodes=nodes,
    )
    last, table = tables[-1]
    assert last + len(table) <= layout.ACPI_END


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
@pytest.mark.parametrize("which", ["SRAT", "SLIT", "DSDT"])
def test_tables_survive_a_round_trip_through_iasl(tmp_path: Path, which: str) -> None:
    nodes, ram = two_nodes(), LowMemory()
    cpus = cpus_in(nodes, present=2)
    rsdp = write_acpi_tables(ram, cpus, hotplug=True, hot_cpus=True, nodes=nodes)
    table = found_tables(ram, rsdp)[which]
    (tmp_path / "table.dat").write_bytes(table)
    for arguments in (["-d", "table.dat"], ["-we", "table.dsl"]):
        done = subprocess.run(
            ["iasl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    if which != "DSDT":  # whose compiler chooses other encodings
        made = (tmp_path / "table.aml").read_bytes()
        assert made[36:] == table[36:]
