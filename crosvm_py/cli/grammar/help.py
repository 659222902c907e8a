# SPDX-License-Identifier: BSD-3-Clause
"""The text of ``--help``, made from the tables that the parser reads."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import load_command
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crosvm_py.cli.grammar.command import Command
    from crosvm_py.cli.grammar.keyvalue import Field
    from crosvm_py.cli.grammar.options import Option

_COLUMN: Final = 30
_WIDTH: Final = 100


def overview(commands: Iterable[Command], options: Sequence[Option[object]]) -> str:
    """Return what ``crosvm --help`` prints."""
    lines = ["usage: crosvm [OPTIONS] COMMAND …", "", "Commands:"]
    for command in commands:
        lines += _entry(f"{command.name} {_arguments(command)}".rstrip(), command.summary)
    lines += ["", "Options:"]
    lines += _options(options)
    lines += ["", "crosvm COMMAND --help, or crosvm help COMMAND, tells more of one command."]
    return "\n".join(lines) + "\n"


def command_help(command: Command) -> str:
    """Return what ``crosvm COMMAND --help`` prints."""
    options = " [OPTIONS]" if command.options else ""
    lines = [f"usage: crosvm {command.name}{options} {_arguments(command)}".rstrip(), ""]
    lines += [f"{command.summary[0].upper()}{command.summary[1:]}."]
    if command.subcommands:
        lines += ["", "Commands:"]
        for place in command.subcommands.values():
            each = load_command(place)
            lines += _entry(f"{each.name} {_arguments(each)}".rstrip(), each.summary)
    if command.positional.metavar:
        lines += ["", *_entry(command.positional.metavar, command.positional.help)]
    lines += ["", "Options:", *_options(command.options)]
    for option in command.options:
        if option.fields:
            lines += ["", f"Keys of {option.name}:", *_keys(option.fields)]
    return "\n".join(lines) + "\n"


def _arguments(command: Command) -> str:
    positional = command.positional
    if not positional.at_most:
        return ""
    metavar = positional.metavar
    repeated = positional.at_most > positional.at_least and "…" not in metavar
    shown = metavar if positional.at_least else f"[{metavar}…]"
    shown += f" [{metavar}…]" if repeated and positional.at_least else ""
    return f"{shown} -- {positional.rest}" if positional.rest else shown


def _options(options: Iterable[Option[object]]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(option.names)
        lines += _entry(f"{names} {option.metavar}".rstrip(), option.help)
    return lines + _entry("-h, --help", "print this")


def _keys(fields: Sequence[Field[object]]) -> list[str]:
    lines = []
    for index, field in enumerate(fields):
        form = f"[{field.name}=]{field.kind}" if index == 0 else f"{field.name}={field.kind}"
        default = field.default
        shown = f"{default}".lower() if isinstance(default, bool) else default
        lines += _entry(form, field.help + (f" ({shown})" if shown not in (None, "") else ""))
    return lines


def _entry(term: str, text: str) -> list[str]:
    """Return ``term`` and ``text`` in two columns; a long term has a line of its own."""
    rows = _wrap(text, _WIDTH - _COLUMN)
    left = f"  {term}"
    if len(left) + 2 > _COLUMN:
        return [left, *(" " * _COLUMN + row for row in rows)]
    return [left.ljust(_COLUMN) + rows[0], *(" " * _COLUMN + row for row in rows[1:])]


def _wrap(text: str, width: int) -> list[str]:
    rows = [""]
    for word in text.split():
        if len(rows[-1]) + 1 + len(word) > width:
            rows.append(word)
        else:
            rows[-1] = f"{rows[-1]} {word}".strip()
    return rows
