# SPDX-License-Identifier: BSD-3-Clause
"""The record of a command, and the settings from the options before it."""

from __future__ import annotations

from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crosvm_py.cli.grammar.options import Arguments, Option, OptionGroup, Positional
    from sys_util import log


# From the name of each command to where it is defined: "package.module:CONSTANT".
CommandTable: TypeAlias = "Mapping[str, str]"


class GlobalSettings(NamedTuple):
    """The values of the options before the command."""

    extended_status: bool
    syslog: bool
    syslog_tag: str
    log_filter: log.Filter


class Command(NamedTuple):
    """One command: its command line, and the function that runs it and returns the exit status.

    If there are ``subcommands``, the next word is one of them; their names have two words. If there
    are many ``options``, ``groups`` sorts them for ``--help``.
    """

    name: str
    summary: str
    options: tuple[Option[object], ...]
    positional: tuple[Positional, ...]
    run: Callable[[Arguments, GlobalSettings], int]
    subcommands: Mapping[str, str] = {}  # a CommandTable
    examples: tuple[str, ...] = ()
    groups: tuple[OptionGroup, ...] = ()
    details: str = ""


def command_group(name: str, summary: str, subcommands: CommandTable) -> Command:
    """Return a command that does nothing by itself and needs one of ``subcommands``."""

    def refuse(_arguments: Arguments, _settings: GlobalSettings) -> int:
        raise UsageError(f"{name}: a command is missing: {', '.join(subcommands)}")

    return Command(name, summary, (), (), refuse, subcommands)


def load_command(place: str) -> Command:
    """Import a command from its place in a ``CommandTable``."""
    module, _, constant = place.partition(":")
    # Does the same as importlib.import_module; importing importlib would take time.
    command: Command = getattr(__import__(module, fromlist=(constant,)), constant)
    return command
