# SPDX-License-Identifier: BSD-3-Clause
"""The pages of ``crosvm`` and of each of its commands."""

from __future__ import annotations

from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS
from crosvm_py.cli.first_steps import ABOUT, FIRST_STEPS
from crosvm_py.cli.grammar.command import load_command
from crosvm_py.cli.grammar.help import arguments_of, by_users, shared_fields, shown_default
from crosvm_py.cli.grammar.options import OptionGroup
from crosvm_py.manual.page import Page
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crosvm_py.cli.grammar.command import Command, CommandTable
    from crosvm_py.cli.grammar.help import SharedFields
    from crosvm_py.cli.grammar.keyvalue import Field
    from crosvm_py.cli.grammar.options import Option

_HELP: Final = ("-h, --help", "print a short form of this page")
_PROGRAMS: Final = ("crosvm", "cloud-hypervisor", "ch-remote")

# As in exit_status.py; the second is without --extended-status.
_STATUSES: Final = (
    ("0", "the guest powered off, or the VM was stopped; without --extended-status also a reset"),
    ("1", "an error that has a name; without --extended-status also a panic or the watchdog"),
    ("32", "the guest reset itself"),
    ("33", "a crash: a device ended for good, or the guest did what no guest may do"),
    ("34", "the guest panicked"),
    ("35", "a command line that cannot be read"),
    ("36", "the watchdog of the guest expired"),
    ("70", "a bug of crosvm-py, which the log describes"),
)


def crosvm_pages() -> dict[str, str]:
    """Return every page by its name."""
    commands = dict(_all_commands(COMMANDS))
    pages = {"crosvm": _overview(commands)}
    for name, command in commands.items():
        pages[name] = _command_page(name, command, commands)
    return pages


def _all_commands(table: CommandTable) -> Iterator[tuple[str, Command]]:
    for place in table.values():
        command = load_command(place)
        yield f"crosvm-{command.name.replace(' ', '-')}", command
        yield from _all_commands(command.subcommands)


def _overview(commands: dict[str, Command]) -> str:
    page = Page("crosvm", "run operating systems that you do not trust")
    page.section("SYNOPSIS")
    page.text("crosvm [OPTIONS] COMMAND …")
    page.section("DESCRIPTION")
    page.text(ABOUT)
    page.section("FIRST STEPS")
    for step in FIRST_STEPS:
        page.entry(step.line, step.purpose)
    page.section("COMMANDS")
    for command in commands.values():
        if not command.subcommands:
            page.entry(f"{command.name} {arguments_of(command)}".rstrip(), command.summary)
    page.section("OPTIONS")
    _options(page, GLOBAL_OPTIONS, {})
    page.entry(*_HELP)
    page.section("EXIT STATUS")
    for status, meaning in _STATUSES:
        page.entry(status, meaning)
    return page.finish((*commands, *_PROGRAMS))


def _command_page(name: str, command: Command, commands: dict[str, Command]) -> str:
    page = Page(name, command.summary)
    page.section("SYNOPSIS")
    options = " [OPTIONS]" if command.options else ""
    arguments = "COMMAND …" if command.subcommands else arguments_of(command)
    page.text(f"crosvm {command.name}{options} {arguments}".rstrip())
    page.section("DESCRIPTION")
    page.text(f"{command.summary[0].upper()}{command.summary[1:]}.")
    page.text(command.details)
    for place in command.subcommands.values():
        each = load_command(place)
        page.entry(f"{each.name} {arguments_of(each)}".rstrip(), each.summary)
    for argument in command.positional:
        page.entry(argument.metavar, argument.help)
    _groups(page, command)
    if command.examples:
        page.section("EXAMPLES")
        page.literal(command.examples)
    relatives = [other for other in commands if other.startswith(f"{name}-")]
    return page.finish(("crosvm", name.rpartition("-")[0] or "crosvm", *relatives))


def _groups(page: Page, command: Command) -> None:
    shared = shared_fields(command.options)
    page.section("OPTIONS")
    groups = command.groups or (OptionGroup("", command.options),)
    for group in groups:
        if group.title:
            page.part(group.title)
        page.text(group.note)
        _options(page, group.options, shared)
        if group is groups[-1]:
            page.entry(*_HELP)
        if group.examples:
            page.literal(group.examples)
    for names, fields in by_users(shared).items():
        page.part(f"Keys of {names}")
        for field in fields:
            page.entry(*_key(field, implied=False))


def _options(page: Page, options: Iterable[Option[object]], shared: SharedFields) -> None:
    for option in options:
        term = f"{', '.join(option.names)} {option.metavar}".rstrip()
        page.entry(term, option.help + shown_default(option.default))
        own = [field for field in option.fields if field not in shared]
        if own:
            rows = [_key(field, implied=field is option.fields[0]) for field in own]
            page.entries_below("Keys:", rows)


def _key(field: Field[object], *, implied: bool) -> tuple[str, str]:
    """Return a key; the name of an option's first one may be left out."""
    form = f"[{field.name}=]{field.kind}" if implied else f"{field.name}={field.kind}"
    default = " (required)" if field.required else shown_default(field.shown)
    return form, field.help + default
