# SPDX-License-Identifier: BSD-3-Clause
"""Every command that the README shows can be read as it is typed there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from crosvm_py.cli.dispatch import COMMANDS
from crosvm_py.cli.grammar.command import load_command
from crosvm_py.cli.grammar.options import parse
from crosvm_py.cli.run_options.run_config import OPTIONS
from tests.support.command_line import config_of

README = Path(__file__).parent.parent / "README.md"
MAX_LINES = 300


def commands() -> list[list[str]]:
    """Return the words behind each ``crosvm`` in the examples, which are indented."""
    text = README.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    split = (shlex.split(part, comments=True) for line in lines for part in _parts(line))
    return [words[words.index("crosvm") + 1 :] for words in split if "crosvm" in words]


def _parts(line: str) -> list[str]:
    """Return the commands of a line; a semicolon in quotes separates none."""
    return line.split(" ; ")


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_of_the_readme_can_be_read(words: list[str]) -> None:
    command = load_command(COMMANDS[words.pop(0)])
    if command.subcommands:
        command = load_command(command.subcommands[words.pop(0)])
    arguments = parse(words, command.options, command.positional)
    if command.name == "run":
        assert config_of(*words).kernel == arguments.positional[0]


def test_examples_of_the_readme_are_seen() -> None:
    assert len(commands()) > 25


def test_table_has_every_option_of_run() -> None:
    text = README.read_text()
    table = text[text.index("## Options of run") : text.index("## Honest limits")]
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", table))
    assert [option.names for option in OPTIONS if named.isdisjoint(option.names)] == []


def test_readme_stays_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_LINES
