# SPDX-License-Identifier: BSD-3-Clause
"""AML that computes, decides and repeats, and fields that are not alike (ACPI 6.5 §20.2)."""

from __future__ import annotations

from struct import pack

from crosvm_py.machine.x86_64.acpi.aml import (
    Aml,
    field_list,
    name_segment,
    name_string,
    raw_length,
    with_length,
)
from sys_util.typing import Final

_NOWHERE: Final = b"\0"  # the target of an operator whose result is used at once

# General flags of an address space descriptor (§6.4.3.5.1): a fixed range that is consumed; and
# those of memory: cacheable, read-write.
_CONSUMED_RANGE: Final = 0x0D
_RAM: Final = 0x03


def while_true(condition: Aml, *terms: Aml) -> Aml:
    """Encode ``While (condition) { terms }``."""
    return with_length(b"\xa2", condition + b"".join(terms))


def return_value(value: Aml) -> Aml:
    """Encode ``Return (value)``."""
    return b"\xa4" + value


def equal(left: Aml, right: Aml) -> Aml:
    """Encode ``LEqual (left, right)``."""
    return b"\x93" + left + right


def less(left: Aml, right: Aml) -> Aml:
    """Encode ``LLess (left, right)``."""
    return b"\x95" + left + right


def increment(target: Aml) -> Aml:
    """Encode ``Increment (target)``."""
    return b"\x75" + target


def add(left: Aml, right: Aml) -> Aml:
    """Encode ``Add (left, right)``."""
    return b"\x72" + left + right + _NOWHERE


def subtract(left: Aml, right: Aml) -> Aml:
    """Encode ``Subtract (left, right)``."""
    return b"\x74" + left + right + _NOWHERE


def bit_or(left: Aml, right: Aml) -> Aml:
    """Encode ``Or (left, right)``."""
    return b"\x7d" + left + right + _NOWHERE


def qword_field(buffer: str, offset_bytes: int, path: str) -> Aml:
    """Encode ``CreateQWordField (buffer, offset, path)``: eight bytes of a buffer get a name."""
    return b"\x8f" + name_string(buffer) + pack("<BB", 0x0A, offset_bytes) + name_string(path)


def unlike_fields(region: str, unit_bytes: int, *fields: tuple[str, int]) -> Aml:
    """Encode ``Field (region, …)`` with fields of so many bits each; one without name is a gap."""
    units = b"".join(
        (name_segment(name) if name else b"\0") + raw_length(bits) for name, bits in fields
    )
    return field_list(region, unit_bytes, units)


def qword_memory(first: int, last: int) -> bytes:
    """Encode ``QWordMemory``: memory that a device has (§6.4.3.5.1)."""
    return pack(
        "<BHBBBQQQQQ", 0x8A, 43, 0, _CONSUMED_RANGE, _RAM, 0, first, last, 0,
        (last - first + 1) & (1 << 64) - 1,
    )  # fmt: skip
