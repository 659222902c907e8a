# SPDX-License-Identifier: BSD-3-Clause
"""The AML by which a guest hears of devices and CPUs that have come or are to go.

The generic event device (ACPI 6.5 §5.6.9) has an interrupt; its ``_EVT`` reads which event it is
for. The PCI slots have ``_EJ0``, so that a guest knows that they can be ejected. Names and
registers are those of Cloud Hypervisor; ``devices/pci/hotplug.py`` describes the registers.
"""

from __future__ import annotations

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi import aml
from devices.ged import GED_BYTES, GED_CPU, GED_MEMORY, GED_PCI
from devices.pci.hotplug import HOTPLUG_BYTES
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu

# Values of Notify (§5.6.6).
_DEVICE_CHECK: Final = 1
_EJECT_REQUEST: Final = 3

_LOCK: Final = "\\_SB_.PHPR.BLCK"


def slot_terms(segment: int) -> tuple[bytes, ...]:
    """Return what a host bridge has for its slots: a device for each, and what notifies them.

    Slot 0 of segment 0 is the bridge itself, which cannot be ejected.
    """
    slots = range(0 if segment else layout.FIRST_DEVICE_SLOT, layout.PCI_SLOTS)
    mask, event = aml.argument(0), aml.argument(1)
    return (
        *(_slot(slot, segment) for slot in slots),
        aml.method(
            "DVNT",
            2,
            *(
                aml.if_true(
                    aml.bit_and(mask, aml.integer(1 << slot)), aml.notify(_name(slot), event)
                )
                for slot in slots
            ),
        ),
        aml.method(
            "PCNT",
            0,
            aml.acquire(_LOCK),
            aml.store(aml.integer(segment), aml.name_string("\\_SB_.PHPR.PSEG")),
            aml.call("DVNT", aml.name_string("\\_SB_.PHPR.PCIU"), aml.integer(_DEVICE_CHECK)),
            aml.call("DVNT", aml.name_string("\\_SB_.PHPR.PCID"), aml.integer(_EJECT_REQUEST)),
            aml.release(_LOCK),
        ),
    )


def controllers(
    segments: int, *, dimms: bool = False, cpus: Sequence[AcpiCpu] = ()
) -> tuple[bytes, ...]:
    """Return the controllers of PCI hot-plug, of ``dimms`` and ``cpus``, and the event device."""
    others: tuple[bytes, ...] = ()
    events = [(GED_PCI, "\\_SB_.PHPR.PSCN")]
    if dimms:
        from crosvm_py.machine.x86_64.acpi.memory import SCAN, memory_terms

        others += memory_terms()
        events.append((GED_MEMORY, SCAN))
    if cpus:
        from crosvm_py.machine.x86_64.acpi.cpus import SCAN_CPUS, cpu_terms

        others += cpu_terms(cpus)
        events.append((GED_CPU, SCAN_CPUS))
    return _pci_controller(segments), *others, _event_device(events)


def _name(slot: int) -> str:
    return f"S{slot:03}"


def _slot(slot: int, segment: int) -> bytes:
    return aml.device(
        _name(slot),
        aml.name("_SUN", aml.integer(slot)),
        aml.name("_ADR", aml.integer(slot << 16)),
        aml.method(
            "_EJ0", 1, aml.call("\\_SB_.PHPR.PCEJ", aml.integer(slot), aml.integer(segment))
        ),
    )


def _pci_controller(segments: int) -> bytes:
    return aml.device(
        "PHPR",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", aml.string("PCI Hotplug Controller")),
        aml.name(
            "_CRS",
            aml.resource_template(aml.memory32_fixed(layout.PCI_HOTPLUG_GPA, HOTPLUG_BYTES)),
        ),
        aml.memory_region("PCST", layout.PCI_HOTPLUG_GPA, HOTPLUG_BYTES),
        aml.fields("PCST", 4, "PCIU", "PCID", "B0EJ", "PSEG"),
        aml.mutex("BLCK"),
        aml.method(
            "PCEJ",
            2,
            aml.acquire("BLCK"),
            aml.store(aml.argument(1), aml.name_string("PSEG")),
            aml.store(aml.shift_left(aml.integer(1), aml.argument(0)), aml.name_string("B0EJ")),
            aml.release("BLCK"),
        ),
        aml.method(
            "PSCN",
            0,
            *(aml.call(f"\\_SB_.PC{segment:02X}.PCNT") for segment in range(segments)),
        ),
    )


def _event_device(scans: Sequence[tuple[int, str]]) -> bytes:
    """Return the event device; ``scans`` has a method for each event."""
    events = aml.local(0)
    return aml.device(
        "GED_",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.interrupt(layout.GED_GSI))),
        aml.memory_region("GDST", layout.GED_GPA, GED_BYTES),
        aml.fields("GDST", 1, "GDAT"),
        aml.method(
            "_EVT",
            1,
            aml.store(aml.name_string("GDAT"), events),
            *(
                aml.if_true(aml.bit_and(events, aml.integer(event)), aml.call(method))
                for event, method in scans
            ),
        ),
    )
