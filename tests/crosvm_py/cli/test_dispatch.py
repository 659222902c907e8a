# SPDX-License-Identifier: BSD-3-Clause
"""The table of commands leads to the commands that it names."""

from __future__ import annotations

import pytest

from crosvm_py.cli.dispatch import COMMANDS
from crosvm_py.cli.grammar.command import CommandTable, load_command


def every_place() -> list[tuple[str, str]]:
    """Return the name by which each command is called, and its place, with those of groups."""

    def walk(table: CommandTable, prefix: str) -> list[tuple[str, str]]:
        found = []
        for name, place in table.items():
            found.append((prefix + name, place))
            found += walk(load_command(place).subcommands, f"{prefix}{name} ")
        return found

    return walk(COMMANDS, "")


@pytest.mark.parametrize(("name", "place"), every_place())
def test_command_is_called_as_its_table_says(name: str, place: str) -> None:
    assert load_command(place).name == name
