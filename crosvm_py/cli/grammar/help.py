# SPDX-License-Identifier: BSD-3-Clause
"""The text of ``--help``, made from the tables that the parser uses, for 80 columns."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import load_command
from crosvm_py.cli.grammar.options import OptionGroup
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crosvm_py.cli.grammar.command import Command
    from crosvm_py.cli.grammar.keyvalue import Field
    from crosvm_py.cli.grammar.options import Option, Positional

    SharedFields: TypeAlias = dict[Field[object], list[str]]

_COLUMN: Final = 28
_WIDTH: Final = 79  # the last column of a terminal with 80 stays empty


class FirstStep(NamedTuple):
    """A command line for new users, and its purpose."""

    line: str
    purpose: str


def overview(
    about: str,
    steps: Iterable[FirstStep],
    commands: Iterable[Command],
    options: Sequence[Option[object]],
) -> str:
    """Return what ``crosvm --help`` prints."""
    lines = ["usage: crosvm [OPTIONS] COMMAND …", "", *_wrap(about, _WIDTH), ""]
    lines += ["What people do first:"]
    for step in steps:
        lines += [f"  {step.line}", *(f"      {row}" for row in _wrap(step.purpose, _WIDTH - 6))]
    lines += ["", "Commands:"]
    for command in commands:
        lines += _entry(f"{command.name} {arguments_of(command)}".rstrip(), command.summary)
    lines += ["", "Options:", *_options(options), *_HELP, ""]
    lines += ["crosvm COMMAND --help, or crosvm help COMMAND, tells more of one command."]
    return "\n".join(lines) + "\n"


def command_help(command: Command) -> str:
    """Return what ``crosvm COMMAND --help`` prints."""
    options = " [OPTIONS]" if command.options else ""
    arguments = "COMMAND …" if command.subcommands else arguments_of(command)
    usage = f"usage: crosvm {command.name}{options} {arguments}".rstrip()
    lines = [usage, "", *_wrap(f"{command.summary[0].upper()}{command.summary[1:]}.", _WIDTH)]
    if command.details:
        lines += ["", *_wrap(command.details, _WIDTH)]
    if command.subcommands:
        lines += ["", "Commands:"]
        for place in command.subcommands.values():
            each = load_command(place)
            lines += _entry(f"{each.name} {arguments_of(each)}".rstrip(), each.summary)
    if command.positional:
        lines += ["", "Arguments:"]
        for argument in command.positional:
            lines += _entry(argument.metavar, argument.help)
    shared = shared_fields(command.options)
    groups = command.groups or (OptionGroup("Options", command.options),)
    for group in groups:
        lines += ["", f"{group.title}:", *_options(group.options)]
        if group is groups[-1]:
            lines += _HELP
        lines += _group_details(group, shared)
    for names, fields in by_users(shared).items():
        lines += ["", *_keys(f"Keys of {names}:", fields)]
    if command.examples:
        lines += ["", "Examples:", *(f"  {example}" for example in command.examples)]
    return "\n".join(lines) + "\n"


def arguments_of(command: Command) -> str:
    """Return the arguments of a command as a usage line shows them."""
    return " ".join(_argument(argument) for argument in command.positional)


def _argument(argument: Positional) -> str:
    """Return an argument as a usage line shows it."""
    if argument.behind_dashes:
        return f"-- {argument.metavar}"
    shown = argument.metavar + "…" * (argument.at_most > 1)
    return shown if argument.at_least else f"[{shown}]"


def _options(options: Iterable[Option[object]]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(option.names)
        lines += _entry(
            f"{names} {option.metavar}".rstrip(), option.help + shown_default(option.default)
        )
    return lines


def shown_default(default: str) -> str:
    """Return what stands behind a help text about a default, or ""."""
    return f" (default: {default})" if default else ""


def _group_details(group: OptionGroup, shared: SharedFields) -> list[str]:
    """Return the lines after the options of a group: a note, keys, examples."""
    lines = [f"  {row}" for row in _wrap(group.note, _WIDTH - 2) if row]
    for option in group.options:
        own = [field for field in option.fields if field not in shared]
        if own:
            lines += _keys(f"  Keys of {option.name}:", own, option)
    return lines + [f"  Example: {example}" for example in group.examples]


def shared_fields(options: Iterable[Option[object]]) -> SharedFields:
    """Return the fields that several options have, each with the names of those options."""
    users: SharedFields = {}
    for option in options:
        for field in option.fields:
            users.setdefault(field, []).append(option.name)
    return {field: names for field, names in users.items() if len(names) > 1}


def by_users(shared: SharedFields) -> dict[str, list[Field[object]]]:
    """Return shared fields under the names of the options that have them, as one text."""
    found: dict[str, list[Field[object]]] = {}
    for field, names in shared.items():
        found.setdefault(" and ".join((", ".join(names[:-1]), names[-1])), []).append(field)
    return found


def _keys(
    title: str, fields: Iterable[Field[object]], option: Option[object] | None = None
) -> list[str]:
    """Return the keys under a title; the name of ``option``'s first key is marked as optional."""
    lines = [title]
    for field in fields:
        implied = option is not None and field is option.fields[0]
        form = f"[{field.name}=]{field.kind}" if implied else f"{field.name}={field.kind}"
        default = " (required)" if field.required else shown_default(field.shown)
        lines += _entry(form, field.help + default, indent=4)
    return lines


def _entry(term: str, text: str, indent: int = 2) -> list[str]:
    """Return ``term`` and ``text`` in two columns; a long term gets a line of its own."""
    rows = _wrap(text, _WIDTH - _COLUMN)
    left = " " * indent + term
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


_HELP: Final = _entry("-h, --help", "print this")
