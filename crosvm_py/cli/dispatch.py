# SPDX-License-Identifier: BSD-3-Clause
"""From a whole command line to its command: the list of them, and the options before them."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import GlobalSettings
from crosvm_py.cli.grammar.options import Option, parse, suggestion, switch, text_option
from sys_util import log
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crosvm_py.cli.grammar.command import Command
    from crosvm_py.cli.grammar.options import Arguments


def _read_filter(option: str, text: str) -> log.Filter:
    try:
        return log.Filter.parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


EXTENDED_STATUS: Final = switch(
    "--extended-status", "exit with 32 after a reset, 34 a guest panic, 36 a watchdog reset"
)
LOG_LEVEL: Final = Option(
    "--log-level",
    "FILTER",
    "off, error, warn, info or debug; also per module: info,block=debug",
    _read_filter,
)
SYSLOG_TAG: Final = text_option("--syslog-tag", "TAG", "name of the program in syslog (crosvm)")
NO_SYSLOG: Final = switch("--no-syslog", "log to stderr only")
GLOBAL_OPTIONS: Final = (EXTENDED_STATUS, LOG_LEVEL, SYSLOG_TAG, NO_SYSLOG)


# Every command is imported only when it is the one: `crosvm stop` needs no machine.
def _load_run() -> Command:
    from crosvm_py.cli.commands.run import COMMAND

    return COMMAND


def _load_stop() -> Command:
    from crosvm_py.cli.commands.control import STOP

    return STOP


def _load_suspend() -> Command:
    from crosvm_py.cli.commands.control import SUSPEND

    return SUSPEND


def _load_resume() -> Command:
    from crosvm_py.cli.commands.control import RESUME

    return RESUME


def _load_powerbtn() -> Command:
    from crosvm_py.cli.commands.control import POWERBTN

    return POWERBTN


def _load_devices() -> Command:
    from crosvm_py.cli.commands.devices import DEVICES

    return DEVICES


def _load_restart_device() -> Command:
    from crosvm_py.cli.commands.restart_device import RESTART_DEVICE

    return RESTART_DEVICE


def _load_disk() -> Command:
    from crosvm_py.cli.commands.disk import DISK

    return DISK


def _load_limit() -> Command:
    from crosvm_py.cli.commands.limit import LIMIT

    return LIMIT


def _load_link() -> Command:
    from crosvm_py.cli.commands.link import LINK

    return LINK


def _load_balloon() -> Command:
    from crosvm_py.cli.commands.balloon import BALLOON

    return BALLOON


def _load_balloon_stats() -> Command:
    from crosvm_py.cli.commands.balloon_stats import STATS

    return STATS


def _load_policy() -> Command:
    from crosvm_py.cli.commands.policy import POLICY

    return POLICY


def _load_doctor() -> Command:
    from crosvm_py.cli.commands.doctor import COMMAND

    return COMMAND


def _load_version() -> Command:
    from crosvm_py.cli.commands.version import COMMAND

    return COMMAND


COMMANDS: Final[dict[str, Callable[[], Command]]] = {
    "run": _load_run,
    "stop": _load_stop,
    "suspend": _load_suspend,
    "resume": _load_resume,
    "powerbtn": _load_powerbtn,
    "devices": _load_devices,
    "restart-device": _load_restart_device,
    "disk": _load_disk,
    "limit": _load_limit,
    "link": _load_link,
    "balloon": _load_balloon,
    "balloon_stats": _load_balloon_stats,
    "policy": _load_policy,
    "doctor": _load_doctor,
    "version": _load_version,
}


def execute(argv: Sequence[str]) -> int:
    """Do what a whole command line asks for and return the exit status.

    Raises:
        UsageError: it cannot be read.
        VmmError: it cannot be done.
    """
    before = parse(argv, GLOBAL_OPTIONS, stop_at_argument=True)
    if before.help_wanted:
        return _print_overview()
    if not before.rest:
        raise UsageError("a command is missing, see crosvm --help")
    words = _help_asked(before.rest)
    if not words:
        return _print_overview()
    command = _load(words.pop(0), COMMANDS)
    if command.subcommands and words and not words[0].startswith("-"):
        command = _load(words.pop(0), command.subcommands, f"{command.name} ")
    arguments = _parse_command(command, words)
    if arguments.help_wanted:
        return _print_help(command)
    settings = _settings(before)
    log.set_filter(settings.log_filter)
    return command.run(arguments, settings)


def _help_asked(words: Sequence[str]) -> list[str]:
    """Return ``crosvm help COMMAND`` as ``crosvm COMMAND --help``."""
    return [*words[1:], *["--help"] * (len(words) > 1)] if words[0] == "help" else list(words)


def _load(name: str, commands: Mapping[str, Callable[[], Command]], group: str = "") -> Command:
    load = commands.get(name)
    if load is None:
        hint = suggestion(name, commands)
        raise UsageError(f"unknown command {f'{group}{name}'!r}{hint}")
    return load()


def _parse_command(command: Command, words: Sequence[str]) -> Arguments:
    try:
        return parse(words, command.options, command.positional)
    except UsageError as error:
        for option in GLOBAL_OPTIONS:
            if f"unknown option {option.name}" == str(error).partition(",")[0]:
                error = UsageError(f"{option.name} goes before the command")
        raise UsageError(f"{command.name}: {error}") from None


def _settings(before: Arguments) -> GlobalSettings:
    return GlobalSettings(
        extended_status=before.has(EXTENDED_STATUS),
        syslog=not before.has(NO_SYSLOG),
        syslog_tag=before.get(SYSLOG_TAG) or "crosvm",
        log_filter=before.get(LOG_LEVEL) or log.Filter(log.INFO),
    )


def _print_overview() -> int:
    from crosvm_py.cli.grammar.help import overview
    from crosvm_py.cli.output import write_out

    commands = []
    for load in COMMANDS.values():
        command = load()
        commands += [each() for each in command.subcommands.values()] or [command]
    write_out(overview(commands, GLOBAL_OPTIONS))
    return 0


def _print_help(command: Command) -> int:
    from crosvm_py.cli.grammar.help import command_help
    from crosvm_py.cli.output import write_out

    write_out(command_help(command))
    return 0
