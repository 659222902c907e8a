# SPDX-License-Identifier: BSD-3-Clause
"""Say which key does not fit the schema, what it is, and what it may be."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from msgspec import Meta, Struct, structs

from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import MAX_U64
from crosvm_py.vm_config.json_text import joined, shown_key
from sys_util.stranger import brief
from sys_util.typing import Final

_MISSING: Final = "Object missing required field `"
_UNKNOWN: Final = "Object contains unknown field `"
_AT: Final = " - at `$"


def complaint(message: str, value: object, kind: object) -> SchemaError:
    """Return our error for one of msgspec's.

    Args:
        message: what msgspec says about ``value``.
        value: what was parsed, all of it.
        kind: the type that it should have.
    """
    reason, _, path = message.partition(_AT)
    steps = _steps(path.rstrip("`"))
    place = _place(steps)
    for begin, text in ((_MISSING, "is missing"), (_UNKNOWN, "there is no such key")):
        if reason.startswith(begin):
            key = reason.removeprefix(begin).removesuffix("`")
            return SchemaError(joined(place, shown_key(key)), text)
    found, wanted = value, kind
    for step in steps:
        found, wanted = _inside(found, step), _type_inside(wanted, step)
    return SchemaError(place, f"{_shown(found)} is not {describe(wanted)}")


def _steps(path: str) -> list[str | int]:
    """Return the keys and indices of a path such as ``.disks[0].queue_size``."""
    steps: list[str | int] = []
    for part in path.split(".")[1:] if path.startswith(".") else path.split("."):
        name, *indices = part.split("[")
        steps += [name] if name else []
        steps += [int(index.rstrip("]")) for index in indices]
    return steps


def _place(steps: list[str | int]) -> str:
    place = ""
    for step in steps:
        place = f"{place}[{step}]" if isinstance(step, int) else joined(place, step)
    return place


def _inside(value: object, step: str | int) -> object:
    if isinstance(value, dict):
        return value[step]
    return value[step] if isinstance(value, list) and isinstance(step, int) else None


def _type_inside(kind: object, step: str | int) -> object:
    kind = core(kind)[0]
    if isinstance(step, str) and isinstance(kind, type) and issubclass(kind, Struct):
        return next(field.type for field in structs.fields(kind) if field.name == step)
    arguments = get_args(kind)
    return arguments[0] if arguments else object


def core(kind: object) -> tuple[object, list[Meta], bool]:
    """Return a type without its notes and its ``None``, the notes, and whether None is allowed."""
    notes: list[Meta] = []
    nullable = False
    while True:
        if hasattr(kind, "__metadata__"):
            notes += [note for note in kind.__metadata__ if isinstance(note, Meta)]
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, UnionType):
            nullable = True
            kind = next(each for each in get_args(kind) if each is not NoneType)
        else:
            return kind, notes, nullable


def describe(kind: object) -> str:
    """Return what a value of this type may be, for people."""
    kind, notes, _ = core(kind)
    if kind is int:
        low, high = limits_of(notes)
        return f"a whole number in {low}..{high}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "a string"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return "an array" if get_origin(kind) is tuple else "an object"


def limits_of(notes: list[Meta]) -> tuple[int, int]:
    """Return the lowest and the highest value of a number with these notes."""
    low = next((int(note.ge) for note in notes if note.ge is not None), 0)
    high = next((int(note.le) for note in notes if note.le is not None), MAX_U64)
    return low, high


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else brief(value)
