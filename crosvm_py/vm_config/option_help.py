# SPDX-License-Identifier: BSD-3-Clause
"""Describe Cloud Hypervisor's options for people, from the schema."""

from __future__ import annotations

from crosvm_py.vm_config.command_line import PROGRAM
from crosvm_py.vm_config.option_grammar import keys
from crosvm_py.vm_config.option_values import form, write
from crosvm_py.vm_config.options import FLAGS, PAYLOAD, VALUES
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.option_grammar import Key


def describe_options() -> Iterator[str]:
    """Return lines that say what every option is; the keys of an option are indented below it."""
    for name, (text, value) in PROGRAM.items():
        yield f"{name} {value}".rstrip() + f": {text}"
    for name in PAYLOAD:
        yield f"{name} {'TEXT' if name == '--cmdline' else 'PATH'}: what is booted"
    for name in FLAGS:
        yield name
    for name, row in VALUES.items():
        yield f"{name} KEY=VALUE,…{' …' if row.many else ''}: {row.text}"
        yield from (f"  {_describe(key, each)}" for key, each in keys(row.kind).items())


def _describe(name: str, key: Key) -> str:
    shown = key.default not in (None, "") and isinstance(key.default, bool | int | str)
    default = f" ({write(key.default, key.kind)})" if shown else ""
    return f"{name}={form(key.kind)}{default}: {key.text}"
