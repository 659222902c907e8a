# SPDX-License-Identifier: BSD-3-Clause
"""Cloud Hypervisor's ``key=value,…`` options, read into objects of the schema and written back.

An option has one key for every field of its object; the field says what the key is called. The
keys of rate limits stand among those of their device: ``bw_size`` is
``rate_limiter_config.bandwidth.size``.
"""

from __future__ import annotations

from msgspec import NODEFAULT, structs

from crosvm_py.vm_config.codec import built
from crosvm_py.vm_config.complaint import core
from crosvm_py.vm_config.devices import (
    ConsoleConfig,
    DebugConsoleConfig,
    RateLimiterConfig,
    SerialConfig,
    TokenBucket,
)
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import CLI, Record
from crosvm_py.vm_config.option_split import pairs, plain
from crosvm_py.vm_config.option_values import read, write
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

R = TypeVar("R", bound=Record)

_MODES: Final = {"off": "Off", "null": "Null", "pty": "Pty", "tty": "Tty"}
_CONSOLES: Final = (ConsoleConfig, SerialConfig, DebugConsoleConfig)
_LIMITS: Final = "rate_limiter_config"


class Key(NamedTuple):
    """A key of an option: where its value is in the object, its type, what it is, its default."""

    path: tuple[str, ...]
    kind: object
    text: str
    default: object = None


def keys(kind: type[Record]) -> dict[str, Key]:
    """Return the keys of the option for an object of this class, in the order of its fields."""
    found: dict[str, Key] = {}
    for field in structs.fields(kind):
        bare, notes, _ = core(field.type)
        if bare is RateLimiterConfig:
            found |= _limit_keys()
            continue
        extra = next((note.extra for note in notes if note.extra and CLI in note.extra), {})
        name = extra.get(CLI, field.name)
        if name is not None and not (kind in _CONSOLES and field.name == "mode"):
            text = next((note.description for note in notes if note.description), "")
            default = None if field.default is NODEFAULT else field.default
            found[name] = Key((field.name,), field.type, text or "", default)
    return found


def _limit_keys() -> dict[str, Key]:
    found = {}
    for bucket, prefix in (("bandwidth", "bw"), ("ops", "ops")):
        for field in structs.fields(TokenBucket):
            notes = core(field.type)[1]
            text = next((note.description for note in notes if note.description), "")
            path = (_LIMITS, bucket, field.name)
            found[f"{prefix}_{field.name}"] = Key(path, field.type, text or "")
    return found


def parse_option(
    option: str, text: str, kind: type[R], defaults: Mapping[str, object] | None = None
) -> R:
    """Return the object that an option says.

    Args:
        option: its name, for messages.
        defaults: values of fields that the schema needs and the option does not.

    Raises:
        SchemaError: names the option and the key.
    """
    known = keys(kind)
    words = tuple(_MODES) if kind in _CONSOLES else ()
    values: dict[str, object] = {}
    for key, value in pairs(option, text, tuple(known), words).items():
        if value is None:
            _set_mode(option, values, _MODES[key])
        elif plain(value):  # an empty value is an absent one
            _put(values, known[key].path, read(f"{option} {key}", value, known[key].kind))
            if words and key in ("file", "socket"):
                _set_mode(option, values, key.capitalize())
    _check_limits(option, values)
    try:
        return built({**(defaults or {}), **values}, kind)
    except SchemaError as error:
        place = next((key for key, each in known.items() if each.path == (error.place,)), "")
        raise SchemaError(f"{option} {place or error.place}".strip(), error.reason) from None


def _set_mode(option: str, values: dict[str, object], mode: str) -> None:
    if "mode" in values:
        raise SchemaError(option, f"{values['mode']} and {mode} exclude each other")
    values["mode"] = mode


def _put(values: dict[str, object], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if isinstance(inner, dict):
            values = inner
    values[path[-1]] = value


def _check_limits(option: str, values: dict[str, object]) -> None:
    """Refuse half a limit; leave out one that is 0, as Cloud Hypervisor does."""
    limits = values.get(_LIMITS)
    if not isinstance(limits, dict):
        return
    for bucket, prefix in (("bandwidth", "bw"), ("ops", "ops")):
        given = limits.get(bucket, {})
        missing = [name for name in ("size", "refill_time") if given and name not in given]
        if missing:
            raise SchemaError(
                f"{option} {prefix}_{missing[0]}", f"the other {prefix}_ keys need it"
            )
        if given and not (given["size"] and given["refill_time"]):
            del limits[bucket]
    if not limits:
        del values[_LIMITS]


def option_text(record: Record) -> str:
    """Return the text of an option that says the same as ``record``.

    Raises:
        SchemaError: no option can say it: a text has a quote, or a key has no place in options.
    """
    parts = [_mode_text(record)] if isinstance(record, _CONSOLES) else []
    for name, key in keys(type(record)).items():
        value = _get(record, key.path)
        if value is not None and value != key.default:
            parts.append(f"{name}={write(value, key.kind)}")
    return ",".join(part for part in parts if part)


def _mode_text(record: ConsoleConfig | SerialConfig | DebugConsoleConfig) -> str:
    return next((word for word, mode in _MODES.items() if mode == record.mode), "")


def _get(record: object, path: tuple[str, ...]) -> object:
    for name in path:
        record = None if record is None else getattr(record, name)
    return record
