# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm config``: the group of commands for configuration files."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import command_group
from sys_util.typing import Final

CONFIG: Final = command_group(
    "config",
    "check a configuration file, and print the schema of such files",
    {
        "check": "crosvm_py.cli.commands.config_check:CHECK",
        "schema": "crosvm_py.cli.commands.config_schema:SCHEMA",
    },
)
