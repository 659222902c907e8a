# SPDX-License-Identifier: BSD-3-Clause
"""The command line: every command, and what the words of ``crosvm run`` ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crosvm_py.cli.commands.run import COMMAND
from crosvm_py.cli.dispatch import COMMANDS
from crosvm_py.cli.grammar.command import load_command
from crosvm_py.cli.grammar.options import parse
from crosvm_py.cli.run_options.run_config import build_config

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import CommandTable
    from crosvm_py.config import RunConfig


def config_of(*words: str) -> RunConfig:
    """Return what ``crosvm run`` makes of ``words``, among them the kernel."""
    arguments = parse(words, COMMAND.options, COMMAND.positional)
    return build_config(arguments, extended_status=False)


def every_place() -> list[tuple[str, str]]:
    """Return the name by which each command is called, and its place, with those of groups."""

    def walk(table: CommandTable, prefix: str) -> list[tuple[str, str]]:
        found = []
        for name, place in table.items():
            found.append((prefix + name, place))
            found += walk(load_command(place).subcommands, f"{prefix}{name} ")
        return found

    return walk(COMMANDS, "")
