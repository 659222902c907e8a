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

# Resource flags (§6.4.3.5.1 and following).
MEMORY_READ_WRITE: Final = 0x01
IO_ENTIRE_RANGE: Final = 0x03


def name_string(path: str) -> Aml:
    r"""Encode ``_SB_``, ``\_S5_`` or ``PCI0.COM1``; short names are padded (§20.2.2)."""
    root = path.startswith("\\")
    segments = path.removeprefix("\\").split(".")
    encoded = b"".join(_name_segment(segment) for segment in segments)
    prefix = b"\\" if root else b""
    if len(segments) == 1:
        return prefix + encoded
    if len(segments) == 2:
        return prefix + b"\x2e" + encoded
    return prefix + b"\x2f" + bytes([len(segments)]) + encoded


def _name_segment(segment: str) -> Aml:
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


def _with_length(opcode: bytes, content: bytes) -> Aml:
    return opcode + _package_length(len(content)) + content


def name(path: str, value: Aml) -> Aml:
    """Encode ``Name (path, value)``."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: Aml) -> Aml:
    """Encode ``Scope (path) { terms }``."""
    return _with_length(b"\x10", name_string(path) + b"".join(terms))


def device(path: str, *terms: Aml) -> Aml:
    """Encode ``Device (path) { terms }``."""
    return _with_length(b"\x5b\x82", name_string(path) + b"".join(terms))


def package(*elements: Aml) -> Aml:
    """Encode ``Package () { elements }``."""
    if len(elements) > 255:
        raise ValueError(f"an AML package of {len(elements)} elements")
    return _with_length(b"\x12", bytes([len(elements)]) + b"".join(elements))


def buffer(content: bytes) -> Aml:
    """Encode ``Buffer () { content }``."""
    return _with_length(b"\x11", integer(len(content)) + content)


def resource_template(*descriptors: bytes) -> Aml:
    """Encode ``ResourceTemplate () { descriptors }``; checksum 0 means that there is none."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(base: int, count: int) -> bytes:
    """Encode ``IO (Decode16, base, base, 1, count)`` (§6.4.2.5)."""
    return pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def irq(line: int) -> bytes:
    """Encode ``IRQNoFlags () {line}``: edge, active high, exclusive (§6.4.2.1)."""
    return pack("<BH", 0x22, 1 << line)


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
