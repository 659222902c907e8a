# SPDX-License-Identifier: BSD-3-Clause
"""Find the command in a command line and run it; the table of commands and the global options."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import GlobalSettings, load_command
from crosvm_py.cli.grammar.options import Option, UnknownOptionError, parse, switch, text_option
from crosvm_py.cli.grammar.suggest import suggestion
from sys_util import log
from sys_util.errors import UsageError
from sys_util.modules import load_module
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.cli.grammar.command import Command, CommandTable
    from crosvm_py.cli.grammar.options import Arguments


def _read_filter(option: str, text: str) -> log.Filter:
    try:
        return log.Filter.parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


EXTENDED_STATUS: Final = switch(
    "--extended-status",
    "let the exit status of run tell how the guest ended: 32 reset, 34 panic, 36 watchdog",
)
LOG_LEVEL: Final = Option(
    "--log-level",
    "FILTER",
    "lowest level that is logged: off, error, warn, info or debug; also for a part of the "
    "program: info,block=debug",
    _read_filter,
    default="info",
)
SYSLOG_TAG: Final = text_option(
    "--syslog-tag", "TAG", "name of the program in syslog", default="crosvm"
)
NO_SYSLOG: Final = switch("--no-syslog", "log to stderr only, not to syslog")
VERSION: Final = switch("-V --version", "print the version, as crosvm version does")
GLOBAL_OPTIONS: Final = (EXTENDED_STATUS, LOG_LEVEL, SYSLOG_TAG, NO_SYSLOG, VERSION)


# A command's module is imported only when it is needed: `crosvm stop` does not load the vmm.
COMMANDS: Final[CommandTable] = {
    "run": "crosvm_py.cli.commands.run:COMMAND",
    "guest": "crosvm_py.cli.commands.guest:GUEST",
    "pool": "crosvm_py.cli.commands.pool:COMMAND",
    "stop": "crosvm_py.cli.commands.control:STOP",
    "suspend": "crosvm_py.cli.commands.control:SUSPEND",
    "resume": "crosvm_py.cli.commands.control:RESUME",
    "reboot": "crosvm_py.cli.commands.control:REBOOT",
    "powerbtn": "crosvm_py.cli.commands.control:POWERBTN",
    "info": "crosvm_py.cli.commands.info:INFO",
    "top": "crosvm_py.cli.commands.top:TOP",
    "devices": "crosvm_py.cli.commands.devices:DEVICES",
    "plug": "crosvm_py.cli.commands.plug:PLUG",
    "unplug": "crosvm_py.cli.commands.plug:UNPLUG",
    "restart-device": "crosvm_py.cli.commands.restart_device:RESTART_DEVICE",
    "disk": "crosvm_py.cli.commands.disk:DISK",
    "limit": "crosvm_py.cli.commands.limit:LIMIT",
    "link": "crosvm_py.cli.commands.link:LINK",
    "resize": "crosvm_py.cli.commands.resize:COMMAND",
    "balloon": "crosvm_py.cli.commands.balloon:BALLOON",
    "balloon_stats": "crosvm_py.cli.commands.balloon_stats:STATS",
    "coredump": "crosvm_py.cli.commands.coredump:COMMAND",
    "debug": "crosvm_py.cli.commands.debug:DEBUG",
    "config": "crosvm_py.cli.commands.config:CONFIG",
    "policy": "crosvm_py.cli.commands.policy:POLICY",
    "doctor": "crosvm_py.cli.commands.doctor:COMMAND",
    "completion": "crosvm_py.cli.commands.completion:COMMAND",
    "version": "crosvm_py.cli.commands.version:COMMAND",
}


# Programs of Cloud Hypervisor, which have grammars of their own.
PROGRAMS: Final = {
    "ch": "crosvm_py.cloud_hypervisor.program",
    "ch-remote": "crosvm_py.cloud_hypervisor.remote",
}


def execute(argv: Sequence[str]) -> int:
    """Run the command of a command line and return the exit status.

    Raises:
        UsageError: the command line cannot be parsed.
        VmmError: the command failed.
    """
    if argv and argv[0] in PROGRAMS:
        status: int = load_module(PROGRAMS[argv[0]]).run(argv[1:])
        return status
    before = _parse_before(argv)
    if before.help_wanted:
        return _print_overview()
    if before.has(VERSION):
        return _print_version()
    if not before.rest:
        raise UsageError("a command is missing, such as run; crosvm --help lists them")
    words = _help_asked(before.rest)
    if not words:
        return _print_overview()
    command = _find(words.pop(0), COMMANDS)
    if command.subcommands and words and not words[0].startswith("-"):
        command = _find(words.pop(0), command.subcommands, f"{command.name} ")
    arguments = _parse_command(command, words)
    if arguments.help_wanted:
        return _print_help(command)
    settings = _settings(before)
    log.set_filter(settings.log_filter)
    return command.run(arguments, settings)


def _help_asked(words: Sequence[str]) -> list[str]:
    """Turn ``crosvm help COMMAND`` into ``crosvm COMMAND --help``."""
    return [*words[1:], *["--help"] * (len(words) > 1)] if words[0] == "help" else list(words)


def _find(name: str, commands: CommandTable, group: str = "") -> Command:
    place = commands.get(name)
    if place is None:
        hint = suggestion(name, commands)
        raise UsageError(f"unknown command {f'{group}{name}'!r}{hint}")
    return load_command(place)


def _parse_before(argv: Sequence[str]) -> Arguments:
    """Parse the options before the command."""
    try:
        return parse(argv, GLOBAL_OPTIONS, stop_at_argument=True)
    except UnknownOptionError as error:
        run = load_command(COMMANDS["run"])
        if any(error.name in option.names for option in run.options):
            reason = f"{error.name} is an option of run and goes behind it: crosvm run {error.name}"
            raise UsageError(f"{reason} …") from None
        raise


def _parse_command(command: Command, words: Sequence[str]) -> Arguments:
    try:
        return parse(words, command.options, command.positional)
    except UnknownOptionError as error:
        if any(error.name in option.names for option in GLOBAL_OPTIONS):
            reason = f"{error.name} goes before the command: crosvm {error.name} {command.name} …"
            raise UsageError(f"{command.name}: {reason}") from None
        raise UsageError(f"{command.name}: {error}") from None
    except UsageError as error:
        raise UsageError(f"{command.name}: {error}") from None


def _settings(before: Arguments) -> GlobalSettings:
    return GlobalSettings(
        extended_status=before.has(EXTENDED_STATUS),
        syslog=not before.has(NO_SYSLOG),
        syslog_tag=before.get(SYSLOG_TAG) or "crosvm",
        log_filter=before.get(LOG_LEVEL) or log.Filter(log.INFO),
    )


def _print_overview() -> int:
    from crosvm_py.cli.first_steps import ABOUT, FIRST_STEPS
    from crosvm_py.cli.grammar.help import overview
    from crosvm_py.cli.output import write_out

    commands = []
    for place in COMMANDS.values():
        command = load_command(place)
        commands += [load_command(each) for each in command.subcommands.values()] or [command]
    write_out(overview(ABOUT, FIRST_STEPS, commands, GLOBAL_OPTIONS))
    return 0


def _print_help(command: Command) -> int:
    from crosvm_py.cli.grammar.help import command_help
    from crosvm_py.cli.output import write_out

    write_out(command_help(command))
    return 0


def _print_version() -> int:
    from crosvm_py.cli.output import write_out
    from crosvm_py.version import VERSION_LINE

    write_out(VERSION_LINE)
    return 0
