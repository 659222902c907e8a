# SPDX-License-Identifier: BSD-3-Clause
"""The contents of the DSDT: the devices that a guest cannot find by scanning a bus."""

from __future__ import annotations

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi import aml
from devices.acpi_pm import S5_SLEEP_TYPE
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu
    from crosvm_py.machine.x86_64.acpi.numa import AcpiNodes

_PRESENT: Final = 0x0F  # _STA: present, enabled, shown, functioning


# The window for BARs of the only PCI segment: (gpa, bytes).
ONE_WINDOW: Final = ((layout.PCI_MMIO_GPA, layout.PCI_MMIO_BYTES),)


def build_dsdt_aml(
    com_ports: Sequence[int] = (1, 2, 3, 4),
    *,
    hotplug: bool = False,
    dimms: bool = False,
    windows: Sequence[tuple[int, int]] = ONE_WINDOW,
    cpus: Sequence[AcpiCpu] = (),
    nodes: AcpiNodes | None = None,
) -> bytes:
    """Return the AML of the DSDT; ``com_ports`` are the numbers of the UARTs that exist.

    With ``hotplug`` it has what devices that are plugged in later need, and with ``dimms``, too,
    what memory modules need. ``windows`` has those for the BARs of each PCI segment. ``cpus`` are
    those that can come and go; where none can, CPUs are in the MADT alone. With ``nodes`` each host
    bridge has its NUMA node.

    The power button is a fixed feature (FADT) and the reset register is in the FADT, so neither is
    here.
    """
    count = len(windows)
    slots: list[tuple[bytes, ...]] = [()] * count
    controllers: tuple[bytes, ...] = ()
    if hotplug:
        from crosvm_py.machine.x86_64.acpi import hotplug as terms

        slots = [terms.slot_terms(segment) for segment in range(count)]
        controllers = terms.controllers(count, dimms=dimms, cpus=cpus)
    if nodes is not None:
        near = (aml.name("_PXM", aml.integer(nodes.segments.get(at, 0))) for at in range(count))
        slots = [(term, *terms) for term, terms in zip(near, slots, strict=True)]
    return aml.scope(
        "\\_SB_",
        _pci_host_bridge(windows[0], slots[0]),
        *(_pci_segment(number, windows[number], slots[number]) for number in range(1, count)),
        _motherboard_resources(count),
        *(_uart(number) for number in com_ports),
        _rtc(),
        _pvpanic(),
        *controllers,
    ) + aml.name(
        "\\_S5_",
        aml.package(aml.integer(S5_SLEEP_TYPE), aml.integer(0), aml.integer(0), aml.integer(0)),
    )


def _bridge_name(segment: int) -> str:
    """Return the name of a segment's host bridge."""
    return f"PC{segment:02X}"


def _pci_host_bridge(window: tuple[int, int], slots: tuple[bytes, ...]) -> bytes:
    config_first = layout.PCI_CONFIG_PORT
    config_end = config_first + layout.PCI_CONFIG_PORT_COUNT
    return _bridge(
        0,
        window,
        aml.io_ports(config_first, layout.PCI_CONFIG_PORT_COUNT),
        aml.word_io(0, config_first - 1),
        aml.word_io(config_end, 0xFFFF),
        terms=(aml.name("_PRT", _pci_routing()), *slots),
    )


def _pci_segment(number: int, window: tuple[int, int], slots: tuple[bytes, ...]) -> bytes:
    """Return the bridge of a segment without ports; its slots have the lines of segment 0's."""
    lines = aml.method("_PRT", 0, aml.return_value(aml.name_string("\\_SB_.PC00._PRT")))
    return _bridge(number, window, terms=(lines, *slots))


def _bridge(number: int, window: tuple[int, int], *ports: bytes, terms: tuple[bytes, ...]) -> bytes:
    gpa, size_bytes = window
    return aml.device(
        _bridge_name(number),
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_SEG", aml.integer(number)),
        aml.name("_BBN", aml.integer(0)),
        # DMA is cache-coherent. Without this, Linux assumes the opposite on some architectures.
        aml.name("_CCA", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.word_bus_numbers(0, layout.PCI_BUSES - 1),
                *ports,
                aml.dword_memory(gpa, gpa + size_bytes - 1),
            ),
        ),
        *terms,
    )


def _pci_routing() -> bytes:
    """Return the package that wires each slot's four pins to IOAPIC lines (§6.2.13)."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF),
                aml.integer(pin),
                aml.integer(0),
                aml.integer(layout.pci_intx_gsi(slot, pin)),
            )
            for slot in range(layout.PCI_SLOTS)
            for pin in range(layout.PCI_PINS)
        )
    )


def _motherboard_resources(segments: int) -> bytes:
    """Reserve the ECAMs; kernels use them only if reserved (PCI Firmware 3.3 §4.1.2)."""
    return aml.device(
        "MB00",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.memory32_fixed(layout.ECAM_GPA, segments * layout.ECAM_BYTES),
                aml.io_ports(layout.ACPI_PM1_EVENT_PORT, layout.ACPI_PM1_EVENT_BYTES),
                aml.io_ports(layout.ACPI_PM1_CONTROL_PORT, layout.ACPI_PM1_CONTROL_BYTES),
            ),
        ),
    )


def _uart(number: int) -> bytes:
    return aml.device(
        f"COM{number}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(number)),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.io_ports(layout.COM_PORTS[number - 1], layout.COM_PORT_COUNT),
                aml.irq(layout.COM_IRQS[number - 1]),
            ),
        ),
    )


def _rtc() -> bytes:
    return aml.device(
        "RTC0",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.io_ports(layout.CMOS_PORT, layout.CMOS_PORT_COUNT),
                aml.irq(layout.CMOS_IRQ),
            ),
        ),
    )


def _pvpanic() -> bytes:
    """Describe QEMU's paravirtual panic device, which Linux finds by this name."""
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_STA", aml.integer(_PRESENT)),
        aml.name("_CRS", aml.resource_template(aml.io_ports(layout.PVPANIC_PORT, 1))),
    )
