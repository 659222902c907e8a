# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm config schema``."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import NO_ARGUMENTS
from crosvm_py.cli.output import write_out
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _schema(_arguments: Arguments, _settings: GlobalSettings) -> int:
    try:
        from crosvm_py.vm_config.json_schema import json_schema
    except ImportError as error:
        remedy = "needs msgspec: pip install 'crosvm-py[ch]'"
        raise ConfigError(f"config schema: {remedy} ({error})") from None
    import json

    write_out(json.dumps(json_schema(), indent=2) + "\n")
    return 0


SCHEMA: Final = Command(
    "config schema",
    "print the JSON Schema of configuration files",
    (),
    NO_ARGUMENTS,
    _schema,
    examples=("crosvm config schema >vm.schema.json",),
)
