# SPDX-License-Identifier: BSD-3-Clause
"""The help of every command: complete, for 80 columns, and in words that a user can type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from crosvm_py.cli.dispatch import execute
from crosvm_py.cli.first_steps import FIRST_STEPS
from crosvm_py.cli.grammar.command import Command, load_command
from crosvm_py.cli.grammar.keyvalue import Field, parse
from crosvm_py.cli.run_options.run_config import GROUPS, OPTIONS
from tests.support.command_line import config_of, every_place

COMMANDS = [load_command(place) for _, place in every_place()]
IDS = [command.name for command in COMMANDS]
# Words for a default that is no value of the key.
DESCRIBED = {"", "random", "that of the TAP", "0, no limit"}
WITH_DEFAULT = {
    f"{option.name} {field.name}": field
    for option in OPTIONS
    for field in option.fields
    if field.shown not in DESCRIBED and not field.required
}


@pytest.fixture(params=COMMANDS, ids=IDS)
def command(request: pytest.FixtureRequest) -> Command:
    found: Command = request.param
    return found


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert execute(words) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


def test_help_lists_every_option_key_and_argument(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    out = printed(capfd, *command.name.split(), "--help")
    expected = [spelling for option in command.options for spelling in option.names]
    expected += [f"{field.name}=" for option in command.options for field in option.fields]
    expected += [f"  {argument.metavar}" for argument in command.positional]
    assert [word for word in expected if word.replace("=", "") not in out.replace("=", "")] == []


def test_help_fits_80_columns_and_shows_nothing_of_python(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    out = printed(capfd, *command.name.split(), "--help")
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert re.findall(r"b''|\(\(|\(\)|\bNone\b|\bTrue\b|\bFalse\b|\(default: \)", out) == []


def test_overview_tells_first_steps_and_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    out = printed(capfd, "--help")
    assert printed(capfd, "help") == out
    assert len(FIRST_STEPS) == 6
    told = [step.line for step in FIRST_STEPS]
    told += [command.name for command in COMMANDS if not command.subcommands]
    assert [text for text in told if f"  {text}" not in out] == []
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("field", WITH_DEFAULT.values(), ids=WITH_DEFAULT)
def test_default_is_shown_as_a_user_types_it(field: Field[object]) -> None:
    assert parse("--x", f"{field.name}={field.shown}", (field,))[field] == field.default


def test_every_option_of_run_is_in_one_group() -> None:
    assert len({id(option) for option in OPTIONS}) == len(OPTIONS)
    assert load_command("crosvm_py.cli.commands.run:COMMAND").options == OPTIONS


def example_lines() -> list[str]:
    lines = [step.line for step in FIRST_STEPS]
    lines += [example for group in GROUPS for example in group.examples]
    return [line.partition(" ; ")[0].replace("…", "vmlinux") for line in lines]


@pytest.mark.parametrize("line", [line for line in example_lines() if " run " in line])
def test_example_can_be_typed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vm.json").write_text('{"payload":{"kernel":"vmlinux"}}')
    program, command, *words = shlex.split(line)
    assert (program, command) == ("crosvm", "run")
    assert config_of(*words).kernel in ("vmlinux", "bzImage")
