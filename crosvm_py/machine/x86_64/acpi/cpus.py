# SPDX-License-Identifier: BSD-3-Clause
"""The AML of CPUs that can come and go.

``CPHC`` has the registers, which ``devices/cpu_hotplug.py`` describes. ``CPUS`` has a device for
each CPU that there can be: ``_STA`` says whether it is there, ``_MAT`` has its entry of the MADT,
and ``_EJ0`` says that the guest has let it go. Most names are those of Cloud Hypervisor.
"""

from __future__ import annotations

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi import aml, aml_flow
from crosvm_py.machine.x86_64.acpi.madt import local_apic
from devices.cpu_hotplug import CPU_HOTPLUG_BYTES
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu

SCAN_CPUS: Final = "\\_SB_.CPUS.CSCN"

# Values of Notify (§5.6.6), and of _STA.
_DEVICE_CHECK: Final = 1
_EJECT_REQUEST: Final = 3
_PRESENT: Final = 0x0F

_LOCK: Final = "\\_SB_.CPHC.CPLK"
_SELECT: Final = aml.name_string("\\_SB_.CPHC.CSEL")
_ENABLED: Final = aml.name_string("\\_SB_.CPHC.CPEN")
_INSERTING: Final = aml.name_string("\\_SB_.CPHC.CINS")
_REMOVING: Final = aml.name_string("\\_SB_.CPHC.CRMV")
_EJECT: Final = aml.name_string("\\_SB_.CPHC.CEJ0")
_STATUS_BIT: Final = 32  # of the register's first bit in the region
_BITS: Final = ("CPEN", "CINS", "CRMV", "CEJ0")
_ONE: Final = aml.integer(1)


def cpu_terms(cpus: Sequence[AcpiCpu]) -> tuple[bytes, ...]:
    """Return the controller, and the container of all CPUs that there can be."""
    return _controller(), _container(cpus)


def _controller() -> bytes:
    return aml.device(
        "CPHC",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", aml.string("CPU Hotplug Controller")),
        aml.name(
            "_CRS",
            aml.resource_template(aml.memory32_fixed(layout.CPU_HOTPLUG_GPA, CPU_HOTPLUG_BYTES)),
        ),
        aml.mutex("CPLK"),
        aml.memory_region("PRST", layout.CPU_HOTPLUG_GPA, CPU_HOTPLUG_BYTES),
        aml_flow.unlike_fields("PRST", 1, ("", _STATUS_BIT), *((bit, 1) for bit in _BITS)),
        aml.fields("PRST", 4, "CSEL"),
    )


def _container(cpus: Sequence[AcpiCpu]) -> bytes:
    number, event = aml.argument(0), aml.argument(1)
    return aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        _status_method(),
        aml.method(
            "CTFY",
            2,
            *(
                aml.if_true(
                    aml_flow.equal(number, aml.integer(cpu.number)), aml.notify(_name(cpu), event)
                )
                for cpu in cpus
            ),
        ),
        aml.method(
            "CEJ0",
            1,
            aml.acquire(_LOCK),
            aml.store(number, _SELECT),
            aml.store(_ONE, _EJECT),
            aml.release(_LOCK),
        ),
        _scan_method(len(cpus)),
        *(_cpu(cpu) for cpu in cpus),
    )


def _status_method() -> bytes:
    status = aml.local(0)
    return aml.method(
        "CSTA",
        1,
        aml.acquire(_LOCK),
        aml.store(aml.argument(0), _SELECT),
        aml.store(aml.integer(0), status),
        aml.if_true(aml_flow.equal(_ENABLED, _ONE), aml.store(aml.integer(_PRESENT), status)),
        aml.release(_LOCK),
        aml_flow.return_value(status),
    )


def _scan_method(count: int) -> bytes:
    """Notify the system of every CPU with news; writing 1 to a bit takes note of it."""
    number = aml.local(0)

    def tell(bit: bytes, event: int) -> bytes:
        return aml.if_true(
            aml_flow.equal(bit, _ONE),
            aml.call("CTFY", number, aml.integer(event)),
            aml.store(_ONE, bit),
        )

    return aml.method(
        "CSCN",
        0,
        aml.acquire(_LOCK),
        aml.store(aml.integer(0), number),
        aml_flow.while_true(
            aml_flow.less(number, aml.integer(count)),
            aml.store(number, _SELECT),
            tell(_INSERTING, _DEVICE_CHECK),
            tell(_REMOVING, _EJECT_REQUEST),
            aml_flow.increment(number),
        ),
        aml.release(_LOCK),
    )


def _name(cpu: AcpiCpu) -> str:
    return f"C{cpu.number:03X}"


def _cpu(cpu: AcpiCpu) -> bytes:
    """Return one CPU. The first one starts the system and cannot be ejected."""
    number = aml.integer(cpu.number)
    entry = local_apic(cpu._replace(enabled=True))  # as it is when there is reason to look at it
    terms = [
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", number),
        aml.method("_STA", 0, aml_flow.return_value(aml.call("CSTA", number))),
        aml.name("_MAT", aml.buffer(entry)),
    ]
    if cpu.node is not None:
        terms.append(aml.name("_PXM", aml.integer(cpu.node)))
    if cpu.number:
        terms.append(aml.method("_EJ0", 1, aml.call("CEJ0", number)))
    return aml.device(_name(cpu), *terms)
