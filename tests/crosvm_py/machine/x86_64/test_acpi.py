# SPDX-License-Identifier: BSD-3-Clause
"""ACPI tables as a guest finds them: pointers, checksums, fields; AML by hand and by iasl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from struct import unpack_from

import pytest

from crosvm_py.config import MAX_CPUS, MAX_PCI_SEGMENTS
from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi import aml, aml_flow
from crosvm_py.machine.x86_64.acpi.dsdt import build_dsdt_aml
from crosvm_py.machine.x86_64.acpi.madt import contiguous_cpus, madt_body
from crosvm_py.machine.x86_64.acpi.tables import build_acpi_tables, write_acpi_tables
from devices.acpi_pm import S5_SLEEP_TYPE
from tests.crosvm_py.machine.x86_64.low_memory import LowMemory


def found_tables(ram: LowMemory, rsdp_gpa: int) -> dict[str, bytes]:
    """Follow the pointers as a kernel does; check length and checksum of all it meets."""
    rsdp = ram.read(rsdp_gpa, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) % 256 == sum(rsdp) % 256 == 0
    assert rsdp[15] == 2
    (xsdt_gpa,) = unpack_from("<Q", rsdp, 24)

    def table(gpa: int) -> bytes:
        (length,) = unpack_from("<I", ram.content, gpa + 4)
        data = ram.read(gpa, length)
        assert sum(data) % 256 == 0, data[:4]
        return data

    xsdt = table(xsdt_gpa)
    listed = [
        table(gpa) for (gpa,) in ((unpack_from("<Q", xsdt, at)) for at in range(36, len(xsdt), 8))
    ]
    tables = {data[:4].decode(): data for data in (xsdt, *listed)}
    fadt = tables["FACP"]
    dsdt_gpa, facs_gpa = unpack_from("<Q", fadt, 140)[0], unpack_from("<I", fadt, 36)[0]
    assert unpack_from("<I", fadt, 40) == (dsdt_gpa,)
    assert facs_gpa % 64 == 0
    return tables | {"DSDT": table(dsdt_gpa), "FACS": ram.read(facs_gpa, 64)}


@pytest.fixture(scope="module")
def tables() -> dict[str, bytes]:
    ram = LowMemory()
    return found_tables(ram, write_acpi_tables(ram, contiguous_cpus(4)))


@pytest.fixture(scope="module")
def hotplug_tables() -> dict[str, bytes]:
    ram = LowMemory()
    return found_tables(ram, write_acpi_tables(ram, contiguous_cpus(4), hotplug=True))


@pytest.fixture(scope="module")
def hot_cpu_tables() -> dict[str, bytes]:
    """CPUs 0 and 3 of four are there."""
    ram = LowMemory()
    cpus = [cpu._replace(enabled=cpu.number in (0, 3)) for cpu in contiguous_cpus(4)]
    return found_tables(ram, write_acpi_tables(ram, cpus, hotplug=True, hot_cpus=True))


def test_cpus_have_devices_only_where_they_can_come(
    hotplug_tables: dict[str, bytes], hot_cpu_tables: dict[str, bytes]
) -> None:
    names = [b"CPHC", b"CPUS", b"CSCN", b"C000", b"C003"]
    assert [name for name in names if name in hotplug_tables["DSDT"]] == []
    assert [name for name in names if name not in hot_cpu_tables["DSDT"]] == []
    assert hot_cpu_tables["DSDT"].count(b"_EJ0") == 31 + 3  # slots, and all CPUs but the first


def test_madt_says_which_cpus_are_there_and_which_may_come(
    hot_cpu_tables: dict[str, bytes],
) -> None:
    entries = madt_entries(hot_cpu_tables["APIC"])
    cpus = [unpack_from("<BBI", content) for kind, content in entries if kind == 0]
    assert cpus == [(0, 0, 1), (1, 1, 2), (2, 2, 2), (3, 3, 1)]


def test_tables_of_254_cpus_of_which_one_is_there_fit() -> None:
    cpus = [cpu._replace(enabled=not cpu.number) for cpu in contiguous_cpus(254)]
    windows = layout.pci_windows((1,) * 16)
    tables = build_acpi_tables(
        layout.ACPI_RSDP_GPA, cpus, hotplug=True, hot_cpus=True, windows=windows
    )
    last, table = tables[-1]
    assert last + len(table) <= layout.ACPI_END


def test_one_segment_has_the_tables_that_there_were_before(tables: dict[str, bytes]) -> None:
    assert b"PC01" not in tables["DSDT"]
    assert len(tables["MCFG"]) == 60


def test_sixteen_segments_have_bridges_slots_and_configuration_space() -> None:
    windows = layout.pci_windows((1,) * MAX_PCI_SEGMENTS)
    assert sum(size for _gpa, size in windows) == layout.PCI_MMIO_BYTES
    ram = LowMemory()
    found = found_tables(
        ram, write_acpi_tables(ram, contiguous_cpus(MAX_CPUS), hotplug=True, windows=windows)
    )
    for number, (gpa, size_bytes) in enumerate(windows):
        name, segment = f"PC{number:02X}".encode(), aml.name("_SEG", aml.integer(number))
        assert name + aml.name("_HID", aml.eisa_id("PNP0A08")) in found["DSDT"]
        assert segment in found["DSDT"]
        assert aml.dword_memory(gpa, gpa + size_bytes - 1) in found["DSDT"]
        entry = found["MCFG"][44 + 16 * number :][:16]
        ecam = layout.ECAM_GPA + number * layout.ECAM_BYTES
        assert unpack_from("<QHBB", entry) == (ecam, number, 0, 0)
    assert found["DSDT"].count(b"S000") == 2 * (MAX_PCI_SEGMENTS - 1)  # its device, its notice
    reserved = aml.memory32_fixed(layout.ECAM_GPA, MAX_PCI_SEGMENTS * layout.ECAM_BYTES)
    assert reserved in found["DSDT"]
    assert layout.ECAM_GPA + MAX_PCI_SEGMENTS * layout.ECAM_BYTES <= layout.PCI_HOTPLUG_GPA


def test_slots_and_event_device_are_there_only_where_devices_can_come(
    tables: dict[str, bytes], hotplug_tables: dict[str, bytes]
) -> None:
    names = [b"PHPR", b"GED_", b"_EVT", *(f"S{slot:03}".encode() for slot in range(1, 32))]
    assert [name for name in names if name in tables["DSDT"]] == []
    assert [name for name in names if name not in hotplug_tables["DSDT"]] == []
    assert b"S000" not in hotplug_tables["DSDT"]  # the host bridge cannot be ejected
    others = tables.keys() - {"DSDT", "XSDT", "FACP"}
    assert {each: tables[each] for each in others} == {
        each: hotplug_tables[each] for each in others
    }


@pytest.mark.parametrize(
    ("term", "encoded"),
    [
        (
            aml.method("_EJ0", 1, aml.call("PCEJ", aml.integer(2))),
            "14 0c 5f454a30 09 5043454a 0a02",
        ),
        (aml.notify("S006", aml.argument(1)), "86 53303036 69"),
        (aml.store(aml.name_string("GDAT"), aml.local(0)), "70 47444154 60"),
        (aml.bit_and(aml.argument(0), aml.integer(4)), "7b 68 0a04 00"),
        (aml.shift_left(aml.integer(1), aml.argument(0)), "79 01 68 00"),
        (aml.if_true(aml.local(0), aml.release("BLCK")), "a0 08 60 5b27 424c434b"),
        (aml.mutex("BLCK") + aml.acquire("BLCK"), "5b01 424c434b 00 5b23 424c434b ffff"),
        (aml.memory_region("PCST", 0xFEA0_0000, 16), "5b80 50435354 00 0c0000a0fe 0a10"),
        (aml.fields("PCST", 4, "PCIU", "PCID"), "5b81 10 50435354 43 50434955 20 50434944 20"),
        (aml.fields("GDST", 1, "GDAT"), "5b81 0b 47445354 41 47444154 08"),
        (aml_flow.while_true(aml.local(0), aml_flow.increment(aml.local(0))), "a2 04 60 7560"),
        (aml_flow.less(aml.local(0), aml.integer(8)), "95 60 0a08"),
        (aml_flow.equal(aml.local(0), aml.integer(1)), "93 60 01"),
        (
            aml_flow.subtract(aml_flow.add(aml.local(0), aml.local(1)), aml.integer(1)),
            "74 72 60 61 00 01 00",
        ),
        (aml_flow.bit_or(aml.local(0), aml.local(1)), "7d 60 61 00"),
        (aml_flow.return_value(aml.local(0)), "a4 60"),
        (aml_flow.qword_field("MR64", 14, "MINV"), "8f 4d523634 0a0e 4d494e56"),
        (
            aml_flow.unlike_fields("MHPR", 1, ("", 160), ("MEN_", 1)),
            "5b81 0e 4d485052 41 00 400a 4d454e5f 01",
        ),
        (
            aml_flow.qword_memory(0, 0xFFF),
            "8a 2b00 00 0d 03 "
            + 8 * "00"
            + 8 * "00"
            + "ff0f"
            + 6 * "00"
            + 8 * "00"
            + "0010"
            + 6 * "00",
        ),
        (aml.interrupt(16), "89 0600 03 01 10000000"),
    ],
)
def test_aml_of_methods_and_fields_is_as_the_specification_has_it(
    term: bytes, encoded: str
) -> None:
    assert term.hex() == encoded.replace(" ", "")


def test_acpi_tables_are_found_from_the_rsdp(tables: dict[str, bytes]) -> None:
    assert set(tables) == {"XSDT", "FACP", "APIC", "MCFG", "DSDT", "FACS"}
    assert tables["FACS"][:8] == b"FACS" + (64).to_bytes(4, "little")


def test_acpi_tables_of_254_cpus_fit_and_do_not_overlap() -> None:
    placed = sorted(build_acpi_tables(layout.ACPI_RSDP_GPA, contiguous_cpus(254)))
    ends = [gpa + len(table) for gpa, table in placed]
    assert all(end <= gpa for end, (gpa, _) in zip(ends, placed[1:], strict=False))
    assert ends[-1] <= layout.ACPI_END


def test_acpi_tables_that_do_not_fit_are_our_bug() -> None:
    with pytest.raises(ValueError, match=r"ACPI tables end at 0xf"):
        build_acpi_tables(layout.ACPI_END - 0x100, contiguous_cpus(1))


def test_fadt_describes_the_fixed_hardware(tables: dict[str, bytes]) -> None:
    fadt = tables["FACP"]
    assert len(fadt) == 276
    assert (fadt[8], fadt[131]) == (6, 3)
    assert unpack_from("<H", fadt, 46) == (layout.SCI_IRQ,)
    assert unpack_from("<I", fadt, 48) == (0,), "no SMI command: always in ACPI mode"
    assert unpack_from("<II", fadt, 56) == (0x600, 0)
    assert unpack_from("<II", fadt, 64) == (0x604, 0)
    assert fadt[88:92] == bytes([4, 2, 0, 0])
    assert unpack_from("<BBBBQ", fadt, 116) == (1, 8, 0, 1, 0xCF9)
    assert fadt[128] == 6
    assert unpack_from("<BBBBQ", fadt, 148) == (1, 32, 0, 2, 0x600)
    assert unpack_from("<BBBBQ", fadt, 172) == (1, 16, 0, 2, 0x604)
    assert fadt[268:] == b"CROSVMPY"


@pytest.mark.parametrize(
    ("bit", "value"),
    [
        pytest.param(4, 0, id="power-button-is-fixed"),
        pytest.param(5, 1, id="no-sleep-button"),
        pytest.param(10, 1, id="reset-register"),
        pytest.param(20, 0, id="not-hardware-reduced"),
    ],
)
def test_fadt_flags(tables: dict[str, bytes], bit: int, value: int) -> None:
    (flags,) = unpack_from("<I", tables["FACP"], 112)
    assert flags >> bit & 1 == value


def test_fadt_promises_no_keyboard_but_a_cmos_clock(tables: dict[str, bytes]) -> None:
    (boot_flags,) = unpack_from("<H", tables["FACP"], 109)
    assert boot_flags & 0x22 == 0


def madt_entries(madt: bytes) -> list[tuple[int, bytes]]:
    entries, at = [], 44
    while at < len(madt):
        kind, length = madt[at], madt[at + 1]
        entries.append((kind, madt[at + 2 : at + length]))
        at += length
    assert at == len(madt)
    return entries


def test_madt_lists_cpus_and_the_ioapic(tables: dict[str, bytes]) -> None:
    entries = madt_entries(tables["APIC"])
    assert unpack_from("<I", tables["APIC"], 36) == (layout.LAPIC_GPA,)
    cpus = [unpack_from("<BBI", content) for kind, content in entries if kind == 0]
    assert cpus == [(apic_id, apic_id, 1) for apic_id in range(4)]
    ioapics = [unpack_from("<BBII", content) for kind, content in entries if kind == 1]
    assert ioapics == [(0, 0, layout.IOAPIC_GPA, 0)]


def test_madt_overrides_only_lines_that_are_not_as_on_isa(tables: dict[str, bytes]) -> None:
    entries = madt_entries(tables["APIC"])
    overrides = [unpack_from("<BBIH", content) for kind, content in entries if kind == 2]
    # Active high and level for the SCI; active low and level as PCI has it.
    assert overrides == [(0, 9, 9, 0xD), (0, 10, 10, 0xF), (0, 11, 11, 0xF)]


def test_madt_uses_x2apic_entries_from_id_255_up() -> None:
    entries = madt_entries(bytes(36) + madt_body(contiguous_cpus(257)))
    assert sum(kind == 0 for kind, _ in entries) == 255
    x2apic = [unpack_from("<HIII", content) for kind, content in entries if kind == 9]
    assert x2apic == [(0, 255, 1, 255), (0, 256, 1, 256)]


def test_mcfg_names_the_ecam(tables: dict[str, bytes]) -> None:
    assert unpack_from("<QHBB", tables["MCFG"], 44) == (0xF400_0000, 0, 0, 0)


def test_dsdt_routes_every_pin_of_every_slot() -> None:
    code = build_dsdt_aml()
    for slot in range(32):
        for pin in range(4):
            element = aml.package(
                aml.integer(slot << 16 | 0xFFFF),
                aml.integer(pin),
                aml.integer(0),
                aml.integer(layout.pci_intx_gsi(slot, pin)),
            )
            assert element in code


def test_dsdt_s5_is_what_the_power_management_device_obeys() -> None:
    values = bytes([S5_SLEEP_TYPE, 0, 0, 0])
    assert S5_SLEEP_TYPE in (0, 1), "the encoding below is that of Zero and One"
    assert b"\x08\\_S5_\x12\x06\x04" + values in build_dsdt_aml()


@pytest.mark.parametrize("ports", [(1, 2, 3, 4), (1,), ()])
def test_dsdt_has_the_uarts_asked_for(ports: tuple[int, ...]) -> None:
    code = build_dsdt_aml(ports)
    assert [number for number in (1, 2, 3, 4) if f"COM{number}".encode() in code] == list(ports)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        pytest.param(aml.integer(0), "00", id="zero"),
        pytest.param(aml.integer(1), "01", id="one"),
        pytest.param(aml.integer(0xFF), "0a ff", id="byte"),
        pytest.param(aml.integer(0x100), "0b 00 01", id="word"),
        pytest.param(aml.integer(0x1_0000), "0c 00 00 01 00", id="dword"),
        pytest.param(aml.integer(1 << 32), "0e 00 00 00 00 01 00 00 00", id="qword"),
        pytest.param(aml.string("ab"), "0d 61 62 00", id="string"),
        pytest.param(aml.eisa_id("PNP0A08"), "0c 41 d0 0a 08", id="eisa-id"),
        pytest.param(aml.name_string("COM1"), "43 4f 4d 31", id="name"),
        pytest.param(aml.name_string("\\_SB"), "5c 5f 53 42 5f", id="root-padded"),
        pytest.param(aml.name_string("A.B"), "2e 41 5f 5f 5f 42 5f 5f 5f", id="dual"),
        pytest.param(
            aml.name_string("A.B.C"), "2f 03 41 5f 5f 5f 42 5f 5f 5f 43 5f 5f 5f", id="multi"
        ),
        pytest.param(aml.io_ports(0x3F8, 8), "47 01 f8 03 f8 03 01 08", id="io"),
        pytest.param(aml.irq(4), "22 10 00", id="irq"),
        pytest.param(aml.package(), "12 02 00", id="empty-package"),
        pytest.param(aml.buffer(b"\x79\0"), "11 05 0a 02 79 00", id="buffer"),
    ],
)
def test_aml_terms(encoded: bytes, expected: str) -> None:
    assert encoded.hex(" ") == expected


@pytest.mark.parametrize(
    ("content_bytes", "lead"),
    [
        pytest.param(0x3E - 4, "3f", id="one-byte"),
        pytest.param(0x3F - 4, "41 04", id="two-bytes"),
        pytest.param(0xFFF - 2 - 4, "4f ff", id="two-bytes-last"),
        pytest.param(0xFFE - 4, "81 00 01", id="three-bytes"),
        pytest.param(0xF_FFFD - 4, "c1 00 00 01", id="four-bytes"),
    ],
)
def test_aml_package_length_counts_itself(content_bytes: int, lead: str) -> None:
    encoded = aml.scope("X", bytes(content_bytes))
    assert encoded[1:].startswith(bytes.fromhex(lead))


@pytest.mark.parametrize("path", ["", "1ABC", "abcd", "ABCDE", "A..B", "A-B"])
def test_aml_bad_name_is_our_bug(path: str) -> None:
    with pytest.raises(ValueError, match="no AML name segment"):
        aml.name_string(path)


@pytest.fixture(scope="module")
def dimm_tables() -> dict[str, bytes]:
    ram = LowMemory()
    return found_tables(ram, write_acpi_tables(ram, contiguous_cpus(4), hotplug=True, dimms=True))


def test_memory_modules_are_there_only_where_memory_can_grow(
    hotplug_tables: dict[str, bytes], dimm_tables: dict[str, bytes]
) -> None:
    names = [b"MHPC", b"MSCN", *(f"M{slot:03}".encode() for slot in range(8))]
    assert [name for name in names if name in hotplug_tables["DSDT"]] == []
    assert [name for name in names if name not in dimm_tables["DSDT"]] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
@pytest.mark.parametrize("which", ["tables", "hotplug_tables", "dimm_tables", "hot_cpu_tables"])
def test_dsdt_survives_a_round_trip_through_iasl(
    tmp_path: Path, which: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "dsdt.dat").write_bytes(request.getfixturevalue(which)["DSDT"])
    for arguments in (["-d", "dsdt.dat"], ["-we", "dsdt.dsl"]):
        done = subprocess.run(
            ["iasl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
