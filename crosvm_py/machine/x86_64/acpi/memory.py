# SPDX-License-Identifier: BSD-3-Clause
"""The AML of memory modules that are plugged in: a controller, and a device for each slot.

Names and registers are those of Cloud Hypervisor; ``devices/memory_hotplug.py`` describes the
registers. All slots share them, so whoever selects one holds a mutex.
"""

from __future__ import annotations

from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi import aml, aml_flow
from devices.memory_hotplug import MEMORY_HOTPLUG_BYTES, MEMORY_SLOTS
from sys_util.typing import Final

_PRESENT: Final = 0x0F  # _STA: present, enabled, shown, functioning
_DEVICE_CHECK: Final = 1  # a value of Notify (§5.6.6)
_LAST: Final = (1 << 64) - 2

# Where the parts of a QWordMemory are (§6.4.3.5.1).
_MINIMUM: Final = 14
_MAXIMUM: Final = 22
_LENGTH: Final = 38

SCAN: Final = "\\_SB_.MHPC.MSCN"


def memory_terms() -> tuple[bytes, ...]:
    """Return the controller and the devices of all slots."""
    return (_controller(), *(_module(slot) for slot in range(MEMORY_SLOTS)))


def _name(slot: int) -> str:
    return f"M{slot:03}"


def _module(slot: int) -> bytes:
    def ask(method: str) -> bytes:
        return aml_flow.return_value(aml.call(f"\\_SB_.MHPC.{method}", aml.integer(slot)))

    return aml.device(
        _name(slot),
        aml.name("_HID", aml.eisa_id("PNP0C80")),
        aml.name("_UID", aml.integer(slot)),
        aml.method("_STA", 0, ask("MSTA")),
        aml.method("_PXM", 0, ask("MPXM")),
        aml.method("_CRS", 0, ask("MCRS")),
    )


def _controller() -> bytes:
    gap = ("", 8 * 20)
    return aml.device(
        "MHPC",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", aml.string("Memory Hotplug Controller")),
        aml.mutex("MLCK"),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.memory32_fixed(layout.MEMORY_HOTPLUG_GPA, MEMORY_HOTPLUG_BYTES)
            ),
        ),
        aml.memory_region("MHPR", layout.MEMORY_HOTPLUG_GPA, MEMORY_HOTPLUG_BYTES),
        aml.fields("MHPR", 4, "MHBL", "MHBH", "MHLL", "MHLH", "MHPX"),
        aml_flow.unlike_fields("MHPR", 1, gap, ("MEN_", 1), ("MINS", 1), ("MRMV", 1), ("MEJ0", 1)),
        aml.fields("MHPR", 4, "MSEL"),
        _scan(),
        _selecting("MSTA", _if_present(), aml.local(0)),
        _selecting("MPXM", aml.store(aml.name_string("MHPX"), aml.local(0)), aml.local(0)),
        _selecting("MCRS", _fill_resources(), aml.name_string("MR64")),
    )


def _selecting(name: str, terms: bytes, result: bytes) -> bytes:
    """Return a method that selects the slot in its argument, does something, and returns it."""
    return aml.method(
        name,
        1,
        aml.acquire("MLCK"),
        aml.store(aml.argument(0), aml.name_string("MSEL")),
        terms,
        aml.release("MLCK"),
        aml_flow.return_value(result),
    )


def _if_present() -> bytes:
    return aml.store(aml.integer(0), aml.local(0)) + aml.if_true(
        aml.name_string("MEN_"), aml.store(aml.integer(_PRESENT), aml.local(0))
    )


def _fill_resources() -> bytes:
    """Make a QWordMemory of what the registers say."""

    def joined(high: str, low: str) -> bytes:
        shifted = aml.shift_left(aml.name_string(high), aml.integer(32))
        return aml_flow.bit_or(shifted, aml.name_string(low))

    first, length = aml.name_string("MINV"), aml.name_string("LENV")
    last = aml_flow.subtract(aml_flow.add(first, length), aml.integer(1))
    return b"".join(
        (
            aml.name("MR64", aml.resource_template(aml_flow.qword_memory(0, _LAST))),
            aml_flow.qword_field("MR64", _MINIMUM, "MINV"),
            aml_flow.qword_field("MR64", _MAXIMUM, "MAXV"),
            aml_flow.qword_field("MR64", _LENGTH, "LENV"),
            aml.store(joined("MHBH", "MHBL"), first),
            aml.store(joined("MHLH", "MHLL"), length),
            aml.store(last, aml.name_string("MAXV")),
        )
    )


def _scan() -> bytes:
    """Return the method that tells the system of new modules."""
    slot = aml.local(0)
    notify = (
        aml.if_true(
            aml_flow.equal(slot, aml.integer(each)),
            aml.notify(f"\\_SB_.{_name(each)}", aml.integer(_DEVICE_CHECK)),
        )
        for each in range(MEMORY_SLOTS)
    )
    return aml.method(
        "MSCN",
        0,
        aml.acquire("MLCK"),
        aml.store(aml.integer(0), slot),
        aml_flow.while_true(
            aml_flow.less(slot, aml.integer(MEMORY_SLOTS)),
            aml.store(slot, aml.name_string("MSEL")),
            aml.if_true(
                aml.name_string("MINS"),
                *notify,
                aml.store(aml.integer(1), aml.name_string("MINS")),
            ),
            aml_flow.increment(slot),
        ),
        aml.release("MLCK"),
    )
