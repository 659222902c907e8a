# SPDX-License-Identifier: BSD-3-Clause
"""The table of the watchdog as a guest finds it."""

from __future__ import annotations

import shutil
import subprocess
from struct import unpack_from
from typing import TYPE_CHECKING

import pytest

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi.madt import contiguous_cpus
from crosvm_py.machine.x86_64.acpi.tables import write_acpi_tables
from devices.memory_hotplug import MEMORY_HOTPLUG_BYTES
from devices.watchdog import WATCHDOG_BYTES
from tests.crosvm_py.machine.x86_64.low_memory import LowMemory
from tests.crosvm_py.machine.x86_64.test_acpi import found_tables

if TYPE_CHECKING:
    from pathlib import Path


def tables_of(*, watchdog: bool) -> dict[str, bytes]:
    ram = LowMemory()
    return found_tables(ram, write_acpi_tables(ram, contiguous_cpus(4), watchdog=watchdog))


@pytest.fixture(scope="module")
def tables() -> dict[str, bytes]:
    return tables_of(watchdog=False)


@pytest.fixture(scope="module")
def watchdog_tables() -> dict[str, bytes]:
    return tables_of(watchdog=True)


def test_watchdog_adds_its_table_and_changes_no_other(
    tables: dict[str, bytes], watchdog_tables: dict[str, bytes]
) -> None:
    assert watchdog_tables.keys() - tables.keys() == {"WDAT"}
    same = tables.keys() - {"XSDT"}
    assert {name: tables[name] for name in same} == {name: watchdog_tables[name] for name in same}


def test_watchdog_table_has_the_actions_of_its_specification(
    watchdog_tables: dict[str, bytes],
) -> None:
    wdat = watchdog_tables["WDAT"]
    # Length of the header, no PCI function, period, most and least counts, flags, entries.
    header = unpack_from("<IHBBB3xIIIB3xI", wdat, 36)
    assert header == (32, 0xFF, 0xFF, 0xFF, 0xFF, 100, 36_000, 10, 0x81, 10)
    found = {}
    for at in range(68, len(wdat), 24):
        action, instruction, *gas, gpa, value, mask = unpack_from("<BBxxBBBBQII", wdat, at)
        assert gas == [0, 32, 0, 3]  # memory, 32 bits from bit 0, accessed as 32 bits
        found[action] = (instruction, gpa - layout.WATCHDOG_GPA, value, mask)
    every = 0xFFFF_FFFF
    assert found == {
        0x01: (2, 12, 1, 1),  # reset
        0x04: (1, 8, 0, every),  # query current countdown
        0x05: (1, 4, 0, every),  # query countdown
        0x06: (3, 4, 0, every),  # set countdown
        0x08: (0, 0, 1, 1),  # query running state
        0x09: (2, 0, 1, 1),  # set running state
        0x0A: (0, 0, 0, 1),  # query stopped state
        0x0B: (2, 0, 0, 1),  # set stopped state
        0x20: (0, 16, 1, 1),  # query status
        0x21: (2, 16, 0, 1),  # clear status
    }


def test_watchdog_registers_overlap_no_others() -> None:
    last = layout.MEMORY_HOTPLUG_GPA + MEMORY_HOTPLUG_BYTES
    assert last <= layout.WATCHDOG_GPA
    assert layout.WATCHDOG_GPA + WATCHDOG_BYTES <= layout.IOAPIC_GPA


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_watchdog_table_survives_a_round_trip_through_iasl(
    tmp_path: Path, watchdog_tables: dict[str, bytes]
) -> None:
    wdat = watchdog_tables["WDAT"]
    (tmp_path / "wdat.dat").write_bytes(wdat)
    for arguments in (["-d", "wdat.dat"], ["-we", "-p", "again", "wdat.dsl"]):
        done = subprocess.run(
            ["iasl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    again = (tmp_path / "again.aml").read_bytes()
    assert again[36:] == wdat[36:]  # the header names iasl as its creator
