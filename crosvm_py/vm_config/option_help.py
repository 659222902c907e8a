# SPDX-License-Identifier: BSD-3-Clause
"""Describe Cloud Hypervisor's options for people, from the schema."""

from __future__ import annotations

from crosvm_py.vm_config.command_line import PROGRAM
from crosvm_py.vm_config.option_grammar import keys
from crosvm_py.vm_config.option_values import form, write
from crosvm_py.vm_config.options import FLAG_HELP, FLAGS, PAYLOAD, PAYLOAD_HELP, VALUES
from crosvm_py.vm_config.unsupported import remarks
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.option_grammar import Key
    from crosvm_py.vm_config.options import ValueOption


class OptionHelp(NamedTuple):
    """One option: its name, the form of its value, and what it is for."""

    name: str
    form: str
    text: str


def options_with_help() -> Iterator[OptionHelp]:
    """Return every option of the program ``cloud-hypervisor``."""
    for name, (text, value) in PROGRAM.items():
        yield OptionHelp(name, value, text)
    for name, text in PAYLOAD_HELP.items():
        value = "TEXT" if name == "--cmdline" else "PATH"
        yield OptionHelp(name, value, _remarked(text, f"payload.{PAYLOAD[name]}"))
    for name, text in FLAG_HELP.items():
        yield OptionHelp(name, "", _remarked(text, FLAGS[name]))
    for name, row in VALUES.items():
        value = f"KEY=VALUE,…{' …' if row.many else ''}"
        yield OptionHelp(name, value, _remarked(row.text, _place(row)))


def describe_keys(option: str) -> list[tuple[str, str]]:
    """Return the form of each key of an option, with its default, and what it is for."""
    row = VALUES.get(option)
    if row is None:
        return []
    place = f"{_place(row)}.*" if row.many else _place(row)
    return [_describe(name, key, place) for name, key in keys(row.kind).items()]


def describe_options() -> Iterator[str]:
    """Return lines that say what every option is; the keys of an option are indented below it."""
    for option in options_with_help():
        yield f"{option.name} {option.form}".rstrip() + f": {option.text}"
        yield from (f"  {form}: {text}" for form, text in describe_keys(option.name))


def _place(row: ValueOption) -> str:
    return "memory.zones" if row.key == "zones" else row.key


def _remarked(text: str, place: str) -> str:
    """Return a text, with a remark for each reason not to use what it describes."""
    return "; ".join((text, *remarks(place)))


def _describe(name: str, key: Key, place: str) -> tuple[str, str]:
    shown = key.default not in (None, "") and isinstance(key.default, bool | int | str)
    default = f" ({write(key.default, key.kind)})" if shown else ""
    return f"{name}={form(key.kind)}{default}", _remarked(key.text, f"{place}.{'.'.join(key.path)}")
