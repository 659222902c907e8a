# SPDX-License-Identifier: BSD-3-Clause
"""What a command is, and what it is told of the options that stand before it."""

from __future__ import annotations

from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crosvm_py.cli.grammar.options import Arguments, Option, OptionGroup, Positional
    from sys_util import log


# Names of commands, and where each of them is defined: "package.module:CONSTANT".
CommandTable: TypeAlias = "Mapping[str, str]"


class GlobalSettings(NamedTuple):
    """What the options before the command say."""

    extended_status: bool
    syslog: bool
    syslog_tag: str
    log_filter: log.Filter


class Command(NamedTuple):
    """One command: its command line, and the function that does it and returns the exit status.

    Where there are ``subcommands``, the next word is one of them; their names have two words. With
    many ``options`` these are sorted into ``groups``, which is for ``--help`` alone.
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
    """Return a command that is nothing without one of ``subcommands``."""

    def refuse(_arguments: Arguments, _settings: GlobalSettings) -> int:
        raise UsageError(f"{name}: a command is missing: {', '.join(subcommands)}")

    return Command(name, summary, (), (), refuse, subcommands)


def load_command(place: str) -> Command:
    """Import a command from the place that a ``CommandTable`` gives."""
    module, _, constant = place.partition(":")
    # What importlib.import_module does, without the time that importing importlib takes.
    command: Command = getattr(__import__(module, fromlist=(constant,)), constant)
    return command
