# SPDX-License-Identifier: BSD-3-Clause
"""Everything that msgpack can say, where a message of ours says something else.

``hostile_payloads`` goes over every message of a codec and every value in it, and puts each of
``VALUES`` and arrays of any depth in its place. No message is named here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgpack

from sys_util.wire import MAX_MESSAGE_BYTES
from tests.fuzz.messages import message_types, sample
from tests.fuzz.source import RandomSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sys_util.wire import Codec, Message

# Deeper than what msgpack itself unpacks, which is 1,024.
DEEPEST: Final = 1100
DEPTHS: Final = (1, 2, 7, 8, 9, 10, 100, 511, 512, 900, 990, 1000, 1010, 1023, 1024, 1025, DEEPEST)


def deep(depth: int, head: bytes = b"\x91") -> bytes:
    """Return nil in so many arrays, or in maps with ``head`` ``81 a0``."""
    return head * depth + b"\xc0"


def _nan(kind: str, bits: int) -> bytes:
    return struct.pack(">B", 0xCA if kind == "f" else 0xCB) + bits.to_bytes(
        4 if kind == "f" else 8, "big"
    )


_INTEGERS = (
    *(0, 1, -1, 127, 128, -32, -33, -128, -129, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000),
    *(-0x8000, -0x8001, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x1_0000_0000, -0x8000_0000),
    *(-0x8000_0001, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
)

VALUES: Final[dict[str, bytes]] = {
    "nil": b"\xc0",
    "never used": b"\xc1",
    "false": b"\xc2",
    "true": b"\xc3",
    **{f"number {value}": msgpack.packb(value) for value in _INTEGERS},
    "number in more bytes than it needs": b"\xcf" + bytes(8),
    "float": msgpack.packb(1.5),
    "negative zero": msgpack.packb(-0.0),
    "infinity": msgpack.packb(float("inf")),
    "short float": b"\xca" + struct.pack(">f", 1.0),
    "nan": _nan("d", 0x7FF8_0000_0000_0000),
    "signalling nan": _nan("d", 0x7FF0_0000_0000_0001),
    "short nan": _nan("f", 0xFFC0_0000),
    "empty string": b"\xa0",
    "string": msgpack.packb("error"),
    "string of zeros": msgpack.packb("\0" * 40),
    "terminal codes": msgpack.packb("\x1b[2J\u202e\U000e0001"),
    "long string": msgpack.packb("\U000e0001" * 4000),
    "very long string": msgpack.packb("x" * 60_000),
    "no utf-8": b"\xa2\xff\xfe",
    "surrogate": b"\xa3\xed\xa0\x80",
    "surrogate pair": b"\xa6\xed\xa0\xbd\xed\xb8\x80",
    "half a character": b"\xa1\xf0",
    "no bytes": b"\xc4\x00",
    "bytes": msgpack.packb(b"\x81" * 200),
    "many bytes": msgpack.packb(bytes(60_000)),
    "empty array": b"\x90",
    "long array": msgpack.packb([0] * 5000),
    "array of everything": msgpack.packb([None, True, 1, -1, 1.5, "x", b"x", [], {}]),
    "array of more than there is": b"\xdd\xff\xff\xff\xff",
    "arrays of more than there is": b"\xdc\xff\xff" * 8,
    "empty map": b"\x80",
    "map": msgpack.packb({"error": "x", "size_bytes": 1}),
    "map with a number for a name": b"\x81\x01\x01",
    "map with nan for a name": b"\x81\xcb\x7f\xf8" + bytes(6) + b"\x01",
    "map with an array for a name": b"\x81\x90\x01",
    "map with a map for a name": b"\x81\x80\x01",
    "map with one name twice": b"\x82\xa1a\x01\xa1a\x02",
    "map of more than there is": b"\xdf\xff\xff\xff\xff",
    "string of more than there is": b"\xdb\xff\xff\xff\xff",
    "bytes of more than there is": b"\xc6\xff\xff\xff\xff",
    **{f"extension of {1 << n}": bytes((0xD4 + n, 5)) + bytes(1 << n) for n in range(5)},
    "empty extension": b"\xc7\x00\x05",
    "extension of a negative type": b"\xd4\x80\x00",
    "extension of more than there is": b"\xc9\xff\xff\xff\xff\x05",
    "timestamp of 4 bytes": b"\xd6\xff" + bytes(4),
    "timestamp of 8 bytes": b"\xd7\xff" + b"\xff" * 8,
    "timestamp of 12 bytes": b"\xc7\x0c\xff" + b"\xff" * 12,
    "timestamp of no length there is": b"\xc7\x03\xff" + bytes(3),
}


# Stands for what is put in its place: packing all the rest once for each would take long.
_HERE: Final = b"\xc1here\xc1"


class _Raw(bytes):
    """Bytes that are packed already."""


def _packed(value: object) -> bytes:
    if isinstance(value, _Raw):
        return bytes(value)
    if isinstance(value, list):
        return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(_packed, value))
    return msgpack.packb(value)


def _replaced(value: object, place: tuple[int, ...], new: bytes) -> object:
    if not place:
        return _Raw(new)
    assert isinstance(value, list)
    copy = list(value)
    copy[place[0]] = _replaced(value[place[0]], place[1:], new)
    return copy


def _places(value: object) -> Iterator[tuple[int, ...]]:
    """Yield where each value is in arrays of arrays; of several alike the first is enough."""
    yield ()
    for at, item in enumerate(value[:12] if isinstance(value, list) else ()):
        for rest in _places(item):
            yield (at, *rest)


def good_fields(kind: type[Message]) -> list[object]:
    """Return what a message of this kind may hold, with its type first."""
    source = RandomSource(kind.__name__)
    for _ in range(50):  # until each array in it has an item
        fields = [kind.TYPE, *(sample(source, check) for check in kind.FIELDS)]
        if [] not in fields:
            break
    return fields


def hostile_payloads(codec: Codec, *, depths: tuple[int, ...] = DEPTHS) -> Iterator[bytes]:
    """Yield every message of ``codec`` with every value in every place, as far as it fits."""
    news = [*VALUES.values(), *map(deep, depths), *(deep(depth, b"\x81\xa0") for depth in depths)]
    yield from news
    for kind in message_types(codec):
        fields = good_fields(kind)
        for place in _places(fields):
            before, found, after = _packed(_replaced(fields, place, _HERE)).partition(_HERE)
            assert found
            for new in news:
                payload = before + new + after
                if len(payload) <= MAX_MESSAGE_BYTES:
                    yield payload
