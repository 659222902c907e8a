# SPDX-License-Identifier: BSD-3-Clause
"""The command line of the program ``cloud-hypervisor``."""

from __future__ import annotations

from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.option_split import pairs, plain
from crosvm_py.vm_config.option_values import parse_integer
from crosvm_py.vm_config.options import FLAGS, PAYLOAD, VALUES, build_config
from crosvm_py.vm_config.restore_option import parse_restore
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crosvm_py.vm_config.requests import RestoreConfig
    from crosvm_py.vm_config.schema import VmConfig

# Options of the program itself: what they are, and the form of their value ("" for none).
PROGRAM: Final = {
    "--api-socket": ("serve the REST API there", "PATH|path=PATH|fd=N"),
    "--event-monitor": ("write events there", "PATH|path=PATH|fd=N"),
    "--log-file": ("write the log there instead of stderr", "PATH"),
    "--log-format": ("has no effect: lines are those of Cloud Hypervisor without it", "FORMAT"),
    "--seccomp": (
        "whether a denied system call ends the process (true, errno) or is logged (false, log)",
        "true|false|log|errno",
    ),
    "--restore": (
        "restore a snapshot; refused: there are no snapshots",
        "source_url=URL[,KEY=VALUE…]",
    ),
    "--no-shutdown": ("stay when the guest powers off", ""),
    "--help": ("print this text", ""),
    "--version": ("print the version", ""),
    "-v": ("log what happens, and with -vv also details; otherwise warnings alone", ""),
}
_SHORT: Final = {"-h": "--help", "-V": "--version"}
_SECCOMP: Final = ("true", "false", "log", "errno")
_WITHOUT_VALUE: Final = {name for name, (_, form) in PROGRAM.items() if not form} | FLAGS.keys()
_MAX_FD: Final = 0x7FFF_FFFF


class Place(NamedTuple):
    """Where something is: a path, or a descriptor that the caller left open."""

    path: str = ""
    fd: int | None = None


class CommandLine(NamedTuple):
    """What a command line says. There is a ``config`` if there is something to boot.

    ``restore`` has the descriptors that its request takes.
    """

    config: VmConfig | None = None
    restore: tuple[RestoreConfig, tuple[int, ...]] | None = None
    api_socket: Place | None = None
    event_monitor: Place | None = None
    log_file: str | None = None
    log_format: str | None = None
    seccomp: str = "true"
    no_shutdown: bool = False
    verbosity: int = 0
    help_wanted: bool = False
    version_wanted: bool = False


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Return what the words behind the program's name say.

    Raises:
        SchemaError: they cannot be read, or there is nothing to boot for the options of a VM.
    """
    given = _collect(argv)
    seccomp = _text(given, "--seccomp") or "true"
    if seccomp not in _SECCOMP:
        raise SchemaError("--seccomp", f"{seccomp!r:.40} is none of {', '.join(_SECCOMP)}")
    restore = _text(given, "--restore")
    return CommandLine(
        config=_config(given),
        restore=None if restore is None else parse_restore("--restore", restore),
        api_socket=_place(given, "--api-socket"),
        event_monitor=_place(given, "--event-monitor"),
        log_file=_text(given, "--log-file"),
        log_format=_text(given, "--log-format"),
        seccomp=seccomp,
        no_shutdown="--no-shutdown" in given,
        verbosity=len(given.get("-v", ())),
        help_wanted="--help" in given,
        version_wanted="--version" in given,
    )


def _config(given: dict[str, list[str]]) -> VmConfig | None:
    vm_options = [name for name in given if name in FLAGS or name in VALUES]
    if any(name in given for name in ("--kernel", "--firmware")):
        return build_config(given)
    needs = [name for name in (*given, *vm_options) if name in PAYLOAD or name in vm_options]
    if [name for name in needs if not name.startswith("--landlock")]:
        raise SchemaError(needs[0], "needs --kernel or --firmware")
    return None


def _collect(argv: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each option that is given; of -v one for each time."""
    given: dict[str, list[str]] = {}
    words = list(argv)
    while words:
        name, values = _take(words)
        many = name in VALUES and VALUES[name].many
        if name in given and name != "-v" and not many:
            raise SchemaError(name, "is given twice")
        given.setdefault(name, []).extend(values)
    return given


def _take(words: list[str]) -> tuple[str, list[str]]:
    """Take an option and its values from the front of ``words``."""
    word = words.pop(0)
    if word.startswith("-v") and not word.strip("v").strip("-"):
        return "-v", [""] * (len(word) - 1)
    name, equals, value = word.partition("=")
    name = _SHORT.get(name, name)
    if name not in PROGRAM and name not in VALUES and name not in FLAGS and name not in PAYLOAD:
        raise SchemaError("", f"unknown option {name!r:.60}")
    if name in _WITHOUT_VALUE:
        if equals:
            raise SchemaError(name, "takes no value")
        return name, []
    values = [value] if equals else list(_values(words, name in VALUES and VALUES[name].many))
    if not values and name == "--rtc":
        values = [""]
    if not values:
        raise SchemaError(name, "needs a value")
    return name, values


def _values(words: list[str], many: bool) -> Iterator[str]:
    while words and not (words[0].startswith("-") and len(words[0]) > 1):
        yield words.pop(0)
        if not many:
            return


def _text(given: dict[str, list[str]], option: str) -> str | None:
    return given[option][0] if option in given else None


def _place(given: dict[str, list[str]], option: str) -> Place | None:
    text = _text(given, option)
    if text is None:
        return None
    if not text.startswith(("path=", "fd=")):
        return Place(_path(option, text))
    found = pairs(option, text, ("path", "fd"))
    if len(found) != 1:
        raise SchemaError(option, "path= and fd= exclude each other")
    if "path" in found:
        return Place(_path(option, plain(found["path"] or "")))
    fd = parse_integer(plain(found["fd"] or ""))
    if fd is None or not 0 <= fd <= _MAX_FD:
        raise SchemaError(f"{option} fd", f"{found['fd']!r:.40} is not a descriptor")
    return Place(fd=fd)


def _path(option: str, path: str) -> str:
    if not path:
        raise SchemaError(option, "the path is empty")
    return path
