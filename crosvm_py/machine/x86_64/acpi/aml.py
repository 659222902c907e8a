# SPDX-License-Identifier: BSD-3-Clause
"""ACPI Machine Language: the terms that describe this machine (ACPI 6.5 §20.2, §6.4).

Every function returns the bytes of one term, so that calls can be nested as terms are in ASL.
"""

from __future__ import annotations

from struct import pack

from sys_util.typing import Final, TypeAlias

Aml: TypeAlias = bytes

_NAME_SEGMENT_BYTES: Final = 4
_MAX_PACKAGE_BYTES: Final = 1 << 28
_NOWHERE: Final = b"\0"  # the target of an operator whose result is used at once
_SERIALIZED: Final = 1 << 3
# Flags of fields (§20.2.5.2): the size of accesses, and what a write does to the bits beside it.
_ACCESS: Final = {1: 1, 4: 3}
_WRITE_AS_ZEROS: Final = 2 << 5

# Resource flags (§6.4.3.5.1 and following).
MEMORY_READ_WRITE: Final = 0x01
IO_ENTIRE_RANGE: Final = 0x03
_CONSUMER: Final = 1 << 0
_EDGE: Final = 1 << 1


def name_string(path: str) -> Aml:
    r"""Encode ``_SB_``, ``\_S5_`` or ``PCI0.COM1``; short names are padded (§20.2.2)."""
    root = path.startswith("\\")
    segments = path.removeprefix("\\").split(".")
    encoded = b"".join(name_segment(segment) for segment in segments)
    prefix = b"\\" if root else b""
    if len(segments) == 1:
        return prefix + encoded
    if len(segments) == 2:
        return prefix + b"\x2e" + encoded
    return prefix + b"\x2f" + bytes([len(segments)]) + encoded


def name_segment(segment: str) -> Aml:
    """Encode one segment of a name, padded to four characters."""
    valid = segment.replace("_", "A").isalnum() and segment.isascii() and segment.isupper()
    if not valid or len(segment) > _NAME_SEGMENT_BYTES or segment[0].isdigit():
        raise ValueError(f"no AML name segment: {segment!r}")
    return segment.ljust(_NAME_SEGMENT_BYTES, "_").encode("ascii")


def integer(value: int) -> Aml:
    """Encode an integer in the shortest form (§20.2.3)."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"no AML integer: {value:#x}")


def string(text: str) -> Aml:
    """Encode a string (§20.2.3)."""
    if "\0" in text:
        raise ValueError(f"a NUL character in an AML string: {text!r}")
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> Aml:
    """Encode ``PNP0A08`` as the integer that ``EisaId()`` makes of it (§19.6.36)."""
    if len(text) != 7 or not text[:3].isupper() or not text.isalnum():
        raise ValueError(f"no EISA id: {text!r}")
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    swapped = vendor.to_bytes(2, "big") + bytes.fromhex(text[3:])
    return integer(int.from_bytes(swapped, "little"))


def _package_length(content_bytes: int) -> Aml:
    """Encode PkgLength, which counts itself (§20.2.4)."""
    if content_bytes + 1 < 0x40:
        return bytes([content_bytes + 1])
    for extra in (1, 2, 3):
        total = content_bytes + 1 + extra
        if total < 1 << (4 + 8 * extra):
            lead = extra << 6 | total & 0xF
            return bytes([lead]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML package of {content_bytes:#x} bytes")


def with_length(opcode: bytes, content: bytes) -> Aml:
    """Encode what starts with an opcode and its length."""
    return opcode + _package_length(len(content)) + content


def name(path: str, value: Aml) -> Aml:
    """Encode ``Name (path, value)``."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: Aml) -> Aml:
    """Encode ``Scope (path) { terms }``."""
    return with_length(b"\x10", name_string(path) + b"".join(terms))


def device(path: str, *terms: Aml) -> Aml:
    """Encode ``Device (path) { terms }``."""
    return with_length(b"\x5b\x82", name_string(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: Aml) -> Aml:
    """Encode ``Method (path, arguments, Serialized) { terms }``: one call of it at a time."""
    flags = bytes([arguments | _SERIALIZED])
    return with_length(b"\x14", name_string(path) + flags + b"".join(terms))


def call(path: str, *arguments: Aml) -> Aml:
    """Encode a call of a method."""
    return name_string(path) + b"".join(arguments)


def return_value(value: Aml) -> Aml:
    """Encode ``Return (value)``."""
    return b"\xa4" + value


def argument(number: int) -> Aml:
    """Encode ``Arg0`` to ``Arg6``."""
    return bytes([0x68 + number])


def local(number: int) -> Aml:
    """Encode ``Local0`` to ``Local7``."""
    return bytes([0x60 + number])


def store(source: Aml, target: Aml) -> Aml:
    """Encode ``Store (source, target)``."""
    return b"\x70" + source + target


def bit_and(left: Aml, right: Aml) -> Aml:
    """Encode ``And (left, right)``."""
    return b"\x7b" + left + right + _NOWHERE


def shift_left(value: Aml, bits: Aml) -> Aml:
    """Encode ``ShiftLeft (value, bits)``."""
    return b"\x79" + value + bits + _NOWHERE


def if_true(condition: Aml, *terms: Aml) -> Aml:
    """Encode ``If (condition) { terms }``."""
    return with_length(b"\xa0", condition + b"".join(terms))


def notify(path: str, event: Aml) -> Aml:
    """Encode ``Notify (path, event)``: the system hears of it after the method that says so."""
    return b"\x86" + name_string(path) + event


def mutex(path: str) -> Aml:
    """Encode ``Mutex (path, 0)``."""
    return b"\x5b\x01" + name_string(path) + b"\0"


def acquire(path: str) -> Aml:
    """Encode ``Acquire (path, 0xFFFF)``, which waits for as long as it takes."""
    return b"\x5b\x23" + name_string(path) + b"\xff\xff"


def release(path: str) -> Aml:
    """Encode ``Release (path)``."""
    return b"\x5b\x27" + name_string(path)


def memory_region(path: str, gpa: int, size_bytes: int) -> Aml:
    """Encode ``OperationRegion (path, SystemMemory, gpa, size)``."""
    return b"\x5b\x80" + name_string(path) + b"\0" + integer(gpa) + integer(size_bytes)


def fields(region: str, unit_bytes: int, *names: str) -> Aml:
    """Encode ``Field (region, …)`` with fields of 1 or 4 bytes that follow each other."""
    width = raw_length(8 * unit_bytes)
    return field_list(region, unit_bytes, b"".join(name_segment(each) + width for each in names))


def field_list(region: str, unit_bytes: int, units: bytes) -> Aml:
    """Encode ``Field (region, …)`` of encoded units, which are accessed by 1 or 4 bytes."""
    flags = bytes([_ACCESS[unit_bytes] | _WRITE_AS_ZEROS])
    return with_length(b"\x5b\x81", name_string(region) + flags + units)


def raw_length(value: int) -> Aml:
    """Encode a number of bits in the form of PkgLength, which does not count itself here."""
    return bytes([value]) if value < 0x40 else bytes([0x40 | value & 0xF, value >> 4])


def package(*elements: Aml) -> Aml:
    """Encode ``Package () { elements }``."""
    if len(elements) > 255:
        raise ValueError(f"an AML package of {len(elements)} elements")
    return with_length(b"\x12", bytes([len(elements)]) + b"".join(elements))


def buffer(content: bytes) -> Aml:
    """Encode ``Buffer () { content }``."""
    return with_length(b"\x11", integer(len(content)) + content)


def resource_template(*descriptors: bytes) -> Aml:
    """Encode ``ResourceTemplate () { descriptors }``; checksum 0 means that there is none."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(base: int, count: int) -> bytes:
    """Encode ``IO (Decode16, base, base, 1, count)`` (§6.4.2.5)."""
    return pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def irq(line: int) -> bytes:
    """Encode ``IRQNoFlags () {line}``: edge, active high, exclusive (§6.4.2.1)."""
    return pack("<BH", 0x22, 1 << line)


def interrupt(gsi: int) -> bytes:
    """Encode ``Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}`` (§6.4.3.6)."""
    return pack("<BHBBI", 0x89, 6, _CONSUMER | _EDGE, 1, gsi)


def memory32_fixed(base: int, size_bytes: int) -> bytes:
    """Encode ``Memory32Fixed (ReadWrite, base, size)`` (§6.4.3.4)."""
    return pack("<BHBII", 0x86, 9, MEMORY_READ_WRITE, base, size_bytes)


# Address space descriptors of a bridge: producer, positive decode, fixed minimum and maximum.
_FIXED_RANGE: Final = 0x0C


def word_bus_numbers(first: int, last: int) -> bytes:
    """Encode ``WordBusNumber`` (§6.4.3.5.3)."""
    return pack("<BHBBBHHHHH", 0x88, 13, 2, _FIXED_RANGE, 0, 0, first, last, 0, last - first + 1)


def word_io(first: int, last: int) -> bytes:
    """Encode ``WordIO`` (§6.4.3.5.3)."""
    return pack(
        "<BHBBBHHHHH", 0x88, 13, 1, _FIXED_RANGE, IO_ENTIRE_RANGE, 0, first, last, 0,
        last - first + 1,
    )  # fmt: skip


def dword_memory(first: int, last: int) -> bytes:
    """Encode ``DWordMemory``, not cacheable, read-write (§6.4.3.5.2)."""
    return pack(
        "<BHBBBIIIII", 0x87, 23, 0, _FIXED_RANGE, MEMORY_READ_WRITE, 0, first, last, 0,
        last - first + 1,
    )  # fmt: skip
