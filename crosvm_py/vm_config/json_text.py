# SPDX-License-Identifier: BSD-3-Clause
"""Read JSON text from strangers: the rules that neither json nor msgspec has.

A text is refused if it is too long or not UTF-8, is nested too deep or has too many values, has a
key twice in one object, has a number that JSON does not have or no field can hold, half a
surrogate pair, or a zero byte in a string, which no path can contain. Depth and number of values
are checked before any parser sees the text, because parsers recurse and build what they read.
"""

from __future__ import annotations

import json
import re

from crosvm_py.vm_config.errors import SchemaError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 128
# A configuration of 254 vCPUs, each with a list of 512 processors, has half as many.
MAX_VALUES: Final = 1 << 18

_I64_MIN: Final = -(1 << 63)
_U64_MAX: Final = (1 << 64) - 1
_U64_DIGITS: Final = 20

# A string, or what is left of the text from a quote on. It never gives back what it has matched,
# so that each byte is looked at once.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_OPENING: Final = b"[{"
_BRACKETS: Final = b"[{]}"
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _BRACKETS)

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _Ambiguous(dict[str, object]):
    """An object in which a key occurs twice."""

    twice = ""


def parse(text: bytes) -> object:
    """Return the value that a JSON text is.

    Raises:
        SchemaError: it is refused. A syntax error is named with its line and column.
    """
    if len(text) > MAX_BYTES:
        raise SchemaError("", f"{len(text)} bytes are more than {MAX_BYTES}")
    _check_shape(text)
    return _parse(_decode(text))


def _check_shape(text: bytes) -> None:
    if _within_limits(text):  # a count that includes strings is enough for most texts
        return
    shape = _STRING.sub(b"", text)
    if _count_values(shape) > MAX_VALUES:
        raise SchemaError("", f"more than {MAX_VALUES} values")
    depth = 0
    for bracket in shape.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in _OPENING else -1
        if depth > MAX_DEPTH:
            raise SchemaError("", f"objects and arrays more than {MAX_DEPTH} deep")


def _within_limits(text: bytes) -> bool:
    opening = text.count(b"[") + text.count(b"{")
    return opening <= MAX_DEPTH and opening + text.count(b",") <= MAX_VALUES


def _count_values(shape: bytes) -> int:
    return shape.count(b"[") + shape.count(b"{") + shape.count(b",")


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise SchemaError("", f"byte {error.start} is not UTF-8") from None


def _parse(text: str) -> object:
    ambiguous: list[_Ambiguous] = []

    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            made = _Ambiguous(made)
            made.twice = _first_twice(key for key, _ in pairs)
            ambiguous.append(made)
        return made

    try:
        value: object = json.loads(
            text,
            object_pairs_hook=build,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        where = f"at line {error.lineno} column {error.colno}"
        reason = _lowered(error.msg.removesuffix(" at"))
        raise SchemaError("", f"not JSON: {reason} {where}") from None
    if ambiguous:
        place = next(path for path, each in _walk(value) if each is ambiguous[0])
        raise SchemaError(joined(place, shown_key(ambiguous[0].twice)), "the key is there twice")
    if "\\u" in text:
        _check_strings(value)
    return value


def _first_twice(keys: Iterator[str]) -> str:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return ""


def _parse_integer(digits: str) -> object:
    """Return a number that fits 64 bits; a larger one as a float, which no field takes."""
    if len(digits) <= _U64_DIGITS and _I64_MIN <= (number := int(digits)) <= _U64_MAX:
        return number
    return _parse_float(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise SchemaError("", f"{brief(digits)} is a number out of range")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise SchemaError("", f"{name} is not JSON")


def _check_strings(value: object) -> None:
    """Refuse strings that only an escape can make: UTF-8 has no surrogates, JSON no raw zeros."""
    for path, each in _walk(value):
        texts = list(each) if isinstance(each, dict) else [each] if isinstance(each, str) else []
        for text in texts:
            if "\0" in text:
                raise SchemaError(path, "a zero byte in a string")
            if _SURROGATE.search(text):
                raise SchemaError(path, "half a surrogate pair in a string")


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """Return every value in ``value`` with its path. The depth is bounded by ``MAX_DEPTH``."""
    pending: list[tuple[str, object]] = [("", value)]
    while pending:
        path, each = pending.pop()
        yield path, each
        if isinstance(each, dict):
            pending += [(joined(path, shown_key(key)), item) for key, item in each.items()]
        elif isinstance(each, list):
            pending += [(f"{path}[{index}]", item) for index, item in enumerate(each)]


def joined(path: str, key: str) -> str:
    """Return the path of ``key`` in the object at ``path``."""
    return f"{path}.{key}" if path else key


def shown_key(key: str) -> str:
    """Return a key as a message may show it, short and in one line."""
    if key.isidentifier() and key.isascii() and len(key) <= 40:
        return key
    return brief(key).encode("ascii", "backslashreplace").decode()


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
