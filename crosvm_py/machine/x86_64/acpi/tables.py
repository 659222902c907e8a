# SPDX-License-Identifier: BSD-3-Clause
"""The ACPI tables around the DSDT: RSDP, XSDT, FADT, FACS, MADT, MCFG (ACPI 6.5 §5.2)."""

from __future__ import annotations

from struct import Struct, pack, pack_into

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi.dsdt import ONE_WINDOW, build_dsdt_aml
from crosvm_py.machine.x86_64.acpi.madt import madt_body
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu
    from crosvm_py.machine.x86_64.acpi.numa import AcpiNodes
    from crosvm_py.machine.x86_64.regs import MemoryWriter

OEM_ID: Final = b"CROSVM"
OEM_TABLE_ID: Final = b"CROSVMPY"
OEM_REVISION: Final = 1
CREATOR_ID: Final = b"CRPY"
CREATOR_REVISION: Final = 1

# Signature, length, revision, checksum, OEM id, OEM table id, OEM revision, creator, revision.
TABLE_HEADER: Final = Struct("<4sIBB6s8sI4sI")
_CHECKSUM_OFFSET: Final = 9
RSDP_BYTES: Final = 36
FACS_BYTES: Final = 64
FADT_BYTES: Final = 276

# FADT flags (§5.2.9, table 5.10).
_WBINVD: Final = 1 << 0
_PROC_C1: Final = 1 << 2
_NO_FIXED_SLEEP_BUTTON: Final = 1 << 5
_RTC_WAKE_NOT_FIXED: Final = 1 << 6
_RESET_REG_SUP: Final = 1 << 10
# PWR_BUTTON (bit 4) stays clear: the power button is a fixed feature of PM1.

# IA-PC boot architecture flags (§5.2.9.3). Bit 1, the 8042, stays clear although we have its port
# that resets the machine: if it is set, guests wait seconds for a keyboard that does not answer.
_LEGACY_DEVICES: Final = 1 << 0
_VGA_NOT_PRESENT: Final = 1 << 2
_NO_ASPM: Final = 1 << 4

_CMOS_CENTURY_INDEX: Final = 0x32
_SYSTEM_IO: Final = 1
_BYTE_ACCESS: Final = 1
_WORD_ACCESS: Final = 2
_NOT_SUPPORTED_LATENCY: Final = 0xFFFF


def checksum(data: bytes | bytearray) -> int:
    """Return the checksum byte for ``data``, in which it is still 0: the sum must be 0 mod 256."""
    return -sum(data) & 0xFF


def build_table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a table: the common header with its checksum, then ``body``."""
    header = TABLE_HEADER.pack(
        signature, TABLE_HEADER.size + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, OEM_REVISION,
        CREATOR_ID, CREATOR_REVISION,
    )  # fmt: skip
    table = bytearray(header + body)
    table[_CHECKSUM_OFFSET] = checksum(table)
    return bytes(table)


def build_rsdp(xsdt_gpa: int) -> bytes:
    """Return the root pointer of revision 2, without the 32-bit table list."""
    rsdp = bytearray(pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, RSDP_BYTES, xsdt_gpa, 0))
    rsdp[8] = checksum(rsdp[:20])
    rsdp[32] = checksum(rsdp)
    return bytes(rsdp)


def build_facs() -> bytes:
    """Return the firmware control structure, which has neither table header nor checksum."""
    return pack("<4sI24xB31x", b"FACS", FACS_BYTES, 2)


def build_fadt(facs_gpa: int, dsdt_gpa: int) -> bytes:
    """Return the fixed ACPI description of ACPI 6.3."""
    fadt = bytearray(FADT_BYTES)
    pack_into("<II", fadt, 36, facs_gpa, dsdt_gpa)
    pack_into("<H", fadt, 46, layout.SCI_IRQ)
    # SMI_CMD 0 (48): the machine is always in ACPI mode, PM1 control reads SCI_EN as 1.
    pack_into("<I", fadt, 56, layout.ACPI_PM1_EVENT_PORT)
    pack_into("<I", fadt, 64, layout.ACPI_PM1_CONTROL_PORT)
    fadt[88], fadt[89] = layout.ACPI_PM1_EVENT_BYTES, layout.ACPI_PM1_CONTROL_BYTES
    pack_into("<HH", fadt, 96, _NOT_SUPPORTED_LATENCY, _NOT_SUPPORTED_LATENCY)
    fadt[108] = _CMOS_CENTURY_INDEX
    pack_into("<H", fadt, 109, _LEGACY_DEVICES | _VGA_NOT_PRESENT | _NO_ASPM)
    flags = _WBINVD | _PROC_C1 | _NO_FIXED_SLEEP_BUTTON | _RTC_WAKE_NOT_FIXED | _RESET_REG_SUP
    pack_into("<I", fadt, 112, flags)
    fadt[116:128] = _port_address(layout.RESET_PORT, 1, _BYTE_ACCESS)
    fadt[128] = layout.RESET_VALUE
    fadt[131] = 3  # minor version
    # X_FIRMWARE_CTRL (132) stays 0, since only one of the two may be set; X_DSDT may repeat.
    pack_into("<Q", fadt, 140, dsdt_gpa)
    fadt[148:160] = _port_address(
        layout.ACPI_PM1_EVENT_PORT, layout.ACPI_PM1_EVENT_BYTES, _WORD_ACCESS
    )
    fadt[172:184] = _port_address(
        layout.ACPI_PM1_CONTROL_PORT, layout.ACPI_PM1_CONTROL_BYTES, _WORD_ACCESS
    )
    fadt[268:276] = OEM_TABLE_ID  # hypervisor vendor identity
    return build_table(b"FACP", 6, bytes(fadt[TABLE_HEADER.size :]))


def _port_address(port: int, size_bytes: int, access: int) -> bytes:
    return pack("<BBBBQ", _SYSTEM_IO, size_bytes * 8, 0, access, port)


def build_mcfg(segments: int = 1) -> bytes:
    """Return the table with the addresses of the ECAMs (PCI Firmware 3.3 §4.1.2)."""
    entries = (
        pack("<QHBB4x", layout.ECAM_GPA + at * layout.ECAM_BYTES, at, 0, layout.PCI_BUSES - 1)
        for at in range(segments)
    )
    return build_table(b"MCFG", 1, bytes(8) + b"".join(entries))


def build_acpi_tables(
    rsdp_gpa: int,
    cpus: Sequence[AcpiCpu],
    com_ports: Sequence[int] = (1, 2, 3, 4),
    *,
    hotplug: bool = False,
    hot_cpus: bool = False,
    windows: Sequence[tuple[int, int]] = ONE_WINDOW,
    dimms: bool = False,
    watchdog: bool = False,
    nodes: AcpiNodes | None = None,
) -> list[tuple[int, bytes]]:
    """Return every table with its address. The first is the RSDP, at ``rsdp_gpa``.

    With ``hot_cpus`` CPUs can come and go, which needs ``hotplug``. ``windows`` has (gpa, bytes)
    for the BARs of each PCI segment. Without NUMA ``nodes`` there are no tables of them.
    """
    tables: list[tuple[int, bytes]] = []
    at = _align(rsdp_gpa + RSDP_BYTES)

    def put(table: bytes) -> int:
        nonlocal at
        gpa = at
        tables.append((gpa, table))
        at = _align(gpa + len(table))
        return gpa

    facs = put(build_facs())
    aml = build_dsdt_aml(
        com_ports,
        hotplug=hotplug,
        dimms=dimms,
        windows=windows,
        cpus=cpus if hot_cpus else (),
        nodes=nodes,
    )
    dsdt = put(build_table(b"DSDT", 2, aml))
    madt = build_table(b"APIC", 5, madt_body(cpus))
    listed = [put(build_fadt(facs, dsdt)), put(madt), put(build_mcfg(len(windows)))]
    if watchdog:
        from crosvm_py.machine.x86_64.acpi.wdat import wdat_body

        listed.append(put(build_table(b"WDAT", 1, wdat_body())))
    if nodes is not None:
        from crosvm_py.machine.x86_64.acpi.numa import slit_body, srat_body

        listed.append(put(build_table(b"SRAT", 3, srat_body(cpus, nodes))))
        listed.append(put(build_table(b"SLIT", 1, slit_body(nodes))))
    xsdt = put(build_table(b"XSDT", 1, pack(f"<{len(listed)}Q", *listed)))
    if at > layout.ACPI_END:
        raise ValueError(f"ACPI tables end at {at:#x}, behind {layout.ACPI_END:#x}")
    return [(rsdp_gpa, build_rsdp(xsdt)), *tables]


def _align(gpa: int) -> int:
    # The FACS must be aligned to 64 bytes; for the other tables that does no harm.
    return -(-gpa // 64) * 64


def write_acpi_tables(
    memory: MemoryWriter,
    cpus: Sequence[AcpiCpu],
    com_ports: Sequence[int] = (1, 2, 3, 4),
    *,
    hotplug: bool = False,
    dimms: bool = False,
    hot_cpus: bool = False,
    windows: Sequence[tuple[int, int]] = ONE_WINDOW,
    watchdog: bool = False,
    nodes: AcpiNodes | None = None,
) -> int:
    """Write all tables into guest memory and return the address of the RSDP."""
    tables = build_acpi_tables(
        layout.ACPI_RSDP_GPA,
        cpus,
        com_ports,
        hotplug=hotplug,
        dimms=dimms,
        hot_cpus=hot_cpus,
        windows=windows,
        watchdog=watchdog,
        nodes=nodes,
    )
    for gpa, table in tables:
        memory.write(gpa, table)
    return layout.ACPI_RSDP_GPA
