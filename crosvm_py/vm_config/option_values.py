# SPDX-License-Identifier: BSD-3-Clause
"""Read and write the value of one key of an option, by the type of its field."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from msgspec import Meta, Struct, structs

from crosvm_py.vm_config.complaint import core, describe, limits_of
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import NAMES, SIZE, WORDS
from crosvm_py.vm_config.machine import CpuFeatures, CpuTopology
from crosvm_py.vm_config.option_split import items, plain, quoted, split
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

# All processors that a host can have today, and as many vCPUs as KVM allows, with room.
MAX_LIST: Final = 1 << 13
# In all lists of an option, such as those with the processors of each vCPU: a short text can name
# many ranges.
MAX_ITEMS: Final = 1 << 18
_MAX_DIGITS: Final = 20

_TOGGLES: Final = {"on": True, "true": True, "off": False, "false": False}
_SHIFTS: Final = {"K": 10, "M": 20, "G": 30}
_SIZE_HINT: Final = "; a size is a number of bytes, with K, M or G of KiB, MiB or GiB"


def read(place: str, text: str, kind: object) -> object:
    """Return the value, as JSON has it, that ``text`` means for a field of this type.

    Raises:
        SchemaError: it is none; the error names ``place``, the option and its key.
    """
    kind, notes, _ = core(kind)
    if kind is str:
        return _read_text(place, text)
    if kind is bool:
        return _read_toggle(place, text)
    if kind is int:
        return _named(plain(text), notes) or _read_number(place, plain(text), notes)
    if get_origin(kind) is Literal:
        return _read_word(place, text, kind, notes)
    if get_origin(kind) is tuple:
        return _read_list(place, text, get_args(kind)[0])
    if kind is CpuTopology:
        return _read_topology(place, text)
    if kind is CpuFeatures:
        return _read_features(place, text)
    raise TypeError(f"{place}: options have no form for {kind}")


def _refuse(place: str, text: str, wanted: str) -> NoReturn:
    raise SchemaError(place, f"{brief(plain(text))} is not {wanted}")


def _read_text(place: str, text: str) -> str:
    value = plain(text)
    if "\0" in value:
        _refuse(place, text, "a text without zero bytes")
    return value


def _read_toggle(place: str, text: str) -> bool:
    word = plain(text).lower()
    if word not in _TOGGLES:
        _refuse(place, text, "on, off, true or false")
    return _TOGGLES[word]


def _named(text: str, notes: list[Meta]) -> int | None:
    for note in notes:
        if note.extra and NAMES in note.extra:
            found: int | None = note.extra[NAMES].get(text)
            return found
    return None


def _read_number(place: str, text: str, notes: list[Meta]) -> int:
    is_size = any(note.extra and SIZE in note.extra for note in notes)
    shift = _SHIFTS.get(text[-1:], 0) if is_size else 0
    number = parse_integer(text[:-1] if shift else text)
    low, high = limits_of(notes)
    if number is None or not low <= number << shift <= high:
        hint = _SIZE_HINT if is_size else ""
        _refuse(place, text, f"a whole number in {low}..{high}{hint}")
    return number << shift


def parse_integer(text: str) -> int | None:
    """Return a number of up to 64 bits, decimal or with 0x, or ``None``."""
    digits = text.removeprefix("-")
    base = 16 if digits.startswith("0x") else 10
    digits = digits.removeprefix("0x")
    if not (digits.isascii() and digits.isalnum()) or len(digits) > _MAX_DIGITS:
        return None
    try:
        return int(digits, base) * (-1 if text.startswith("-") else 1)
    except ValueError:
        return None


def _words(notes: list[Meta]) -> tuple[str, ...]:
    found: tuple[str, ...] = next(
        note.extra[WORDS] for note in notes if note.extra and WORDS in note.extra
    )
    return found


def words_of(kind: object) -> dict[str, str]:
    """Return the words of an option for the values of an enumeration."""
    kind, notes, _ = core(kind)
    return dict(zip(_words(notes), get_args(kind), strict=True))


def _read_word(place: str, text: str, kind: object, notes: list[Meta]) -> str:
    values = dict(zip(_words(notes), get_args(kind), strict=True))
    word = plain(text).lower()
    if word not in values:
        _refuse(place, text, f"one of {', '.join(values)}")
    return str(values[word])


def _read_list(place: str, text: str, item: object) -> list[object]:
    found: list[object] = []
    inner = 0  # items of lists in the list
    kind = core(item)[0]
    for part in items(place, text):
        if kind is int:
            found += _read_range(place, part.strip(), item)
        elif isinstance(kind, type) and issubclass(kind, Struct):
            made = _read_tuple(place, part, kind)
            found.append(made)
            inner += sum(len(value) for value in made.values() if isinstance(value, list))
        else:
            found.append(read(place, part, item))
        if len(found) > MAX_LIST or inner > MAX_ITEMS:
            raise SchemaError(
                place, f"more than {MAX_ITEMS if inner > MAX_ITEMS else MAX_LIST} items"
            )
    return found


def _read_range(place: str, text: str, item: object) -> Sequence[object]:
    """Read ``3`` or ``3-5``."""
    first, dash, last = text.partition("-")
    if not dash or not first:
        return [read(place, text, item)]
    low, high = read(place, first, item), read(place, last, item)
    if not (isinstance(low, int) and isinstance(high, int) and low <= high):
        _refuse(place, text, "a range from a lower to a higher number")
    if high - low >= MAX_LIST:
        raise SchemaError(place, f"more than {MAX_LIST} items")
    return range(low, high + 1)


def _read_tuple(place: str, text: str, kind: type[Struct]) -> dict[str, object]:
    """Read ``a@b`` into an object of two fields."""
    parts = split(place, text, "@")
    fields = structs.fields(kind)
    if len(parts) != len(fields):
        _refuse(place, text, "@".join(field.name for field in fields))
    return {
        field.name: read(place, part, field.type) for field, part in zip(fields, parts, strict=True)
    }


def _read_topology(place: str, text: str) -> dict[str, object]:
    fields = structs.fields(CpuTopology)
    parts = plain(text).split(":")
    if len(parts) != len(fields):
        _refuse(place, text, "threads:cores:dies:packages")
    return {
        field.name: read(place, part, field.type) for field, part in zip(fields, parts, strict=True)
    }


def _read_features(place: str, text: str) -> dict[str, object]:
    known = [field.name for field in structs.fields(CpuFeatures)]
    found = [plain(item) for item in items(place, text)]
    for name in found:
        if name not in known:
            _refuse(place, name, f"a feature; there is {', '.join(known)}")
    return dict.fromkeys(found, True)


def write(value: object, kind: object) -> str:
    """Return the text of an option's key for a value of the schema.

    Raises:
        SchemaError: no option can hold the value.
    """
    kind = core(kind)[0] if get_origin(core(kind)[0]) is not Literal else kind
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, CpuTopology):
        return ":".join(str(part) for part in structs.astuple(value))
    if isinstance(value, CpuFeatures):
        return f"[{','.join(name for name, on in structs.asdict(value).items() if on)}]"
    if isinstance(value, tuple):
        return f"[{','.join(_write_item(item, get_args(kind)[0]) for item in value)}]"
    if isinstance(value, str) and get_origin(core(kind)[0]) is Literal:
        return next(word for word, name in words_of(kind).items() if name == value)
    return quoted(value) if isinstance(value, str) else str(value)


def _write_item(item: object, kind: object) -> str:
    if not isinstance(item, Struct):
        return write(item, kind)
    fields = structs.fields(type(item))
    return "@".join(write(getattr(item, field.name), field.type) for field in fields)


def form(kind: object) -> str:
    """Return what may stand behind a key, for people."""
    bare, notes, _ = core(kind)
    if bare is bool:
        return "on|off"
    if bare is CpuTopology:
        return "threads:cores:dies:packages"
    if get_origin(bare) is Literal:
        return "|".join(words_of(kind))
    if any(note.extra and SIZE in note.extra for note in notes):
        return "SIZE"
    return "[…]" if get_origin(bare) is tuple else "N" if bare is int else describe(kind)
