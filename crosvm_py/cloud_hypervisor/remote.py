# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ch-remote``: one call of the REST API, with output as that of the original."""

from __future__ import annotations

import json
import os
import sys

from crosvm_py.api_socket import check_packages
from crosvm_py.cli.output import write_error, write_out
from crosvm_py.client.connection import ApiError, ConnectionFailedError, call
from crosvm_py.exit_status import EXIT_HOST
from crosvm_py.vm_config import json_text
from crosvm_py.vm_config.errors import SchemaError
from sys_util.errors import UsageError, VmmError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.vm_config.field_types import Record

NAME: Final = "ch-remote"
_USAGE: Final = 2
_STDERR: Final = 2
_STATUS_NAMES: Final = {
    400: "BadRequest",
    404: "NotFound",
    429: "TooManyRequests",
    500: "InternalServerError",
    501: "NotImplemented",
}
_MAX_FILE_BYTES: Final = 4 << 20


class _Call(NamedTuple):
    """What is sent."""

    method: str
    endpoint: str
    body: bytes | None = None
    fds: tuple[int, ...] = ()


class _ChainError(VmmError):
    """What could not be done, and why."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why


class _Command(NamedTuple):
    """A sub-command: what makes its call, what follows its name, and what it is for."""

    make: Callable[[list[str]], _Call]
    arguments: str
    about: str


def run(words: Sequence[str]) -> int:
    """Run the program and return its exit status."""
    try:
        path, name, rest = _split(list(words))
    except UsageError as error:
        write_error(f"{error}; see {NAME} --help")
        return _USAGE
    if name in ("--help", "-h", "help"):
        write_out(_help())
        return 0
    if name in ("--version", "-V"):
        from crosvm_py.api.versions import BUILD_VERSION

        write_out(f"{NAME} {BUILD_VERSION}\n")
        return 0
    return _carry_out(path, name, rest)


def _carry_out(path: str, name: str, words: list[str]) -> int:
    try:
        made = COMMANDS[name].make(words)
        body = call(path, *made[:2], made.body, made.fds)
    except UsageError as error:
        write_error(f"{name}: {error}; see {NAME} --help")
        return _USAGE
    except ApiError as error:
        _print_errors("http client error", *_server_lines(error))
        return EXIT_HOST
    except ConnectionFailedError as error:
        _print_errors("http client error", f"  1: {error}")
        return EXIT_HOST
    except _ChainError as error:
        _print_errors(error.what, f"  1: {error.why}")
        return EXIT_HOST
    except VmmError as error:
        os.write(_STDERR, f"Error: {NAME} exited with the following error:\n  {error}\n".encode())
        return EXIT_HOST
    if body is not None:
        write_out(body.decode("utf-8", "replace") + "\n")
    return 0


def _split(words: list[str]) -> tuple[str, str, list[str]]:
    """Return the socket's path, the sub-command and its arguments."""
    path = ""
    while words and words[0].startswith("--api-socket"):
        name, equals, value = words.pop(0).partition("=")
        if name != "--api-socket" or (not equals and not words):
            raise UsageError("--api-socket needs a path")
        path = value if equals else words.pop(0)
    if not words:
        raise UsageError("a command is missing")
    name = words.pop(0)
    if name in ("--help", "-h", "help", "--version", "-V"):
        return path, name, words
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r:.40}")
    if not path:
        raise UsageError("--api-socket is missing")
    return path, name, words


def _server_lines(error: ApiError) -> list[str]:
    try:
        texts = json_text.parse(error.body)
        if not isinstance(texts, list):
            raise TypeError("not an array")
    except (SchemaError, TypeError) as reason:
        shown = error.body.decode("utf-8", "replace")
        text = "Can't get remote's error messages from JSON response"
        return [f"  X: {text}: {reason}: body='{shown}'"]
    status = _STATUS_NAMES.get(error.status, "Unknown")
    lines = (f"Server responded with {status}", *map(str, texts))
    return [f"  {level}: {line}" for level, line in enumerate(lines, 1)]


def _print_errors(first: str, *lines: str) -> None:
    head = f"Error: {NAME} exited with the following chain of errors:"
    text = "\n".join((head, f"  0: {first}", *lines)) + "\n"
    os.write(_STDERR, text.encode("utf-8", "backslashreplace"))


def _simple(endpoint: str, method: str = "PUT") -> Callable[[list[str]], _Call]:
    def make(words: list[str]) -> _Call:
        if words:
            raise UsageError(f"unexpected {words[0]!r:.40}")
        return _Call(method, endpoint)

    return make


def _one(words: list[str]) -> str:
    if len(words) != 1:
        raise UsageError("takes one argument")
    return words[0]


def _with_text(endpoint: str, key: str) -> Callable[[list[str]], _Call]:
    """Return what makes a call with one text."""

    def make(words: list[str]) -> _Call:
        return _Call("PUT", endpoint, json.dumps({key: _one(words)}).encode())

    return make


def _adding(endpoint: str, option: str, syntax: str) -> Callable[[list[str]], _Call]:
    """Return what makes a call that adds a device, which is described as for ``option``."""

    def make(words: list[str]) -> _Call:
        text = _one(words)
        check_packages()
        from crosvm_py.vm_config.codec import encode
        from crosvm_py.vm_config.errors import SchemaError
        from crosvm_py.vm_config.options import parse_value

        try:
            device = parse_value(option, text)
        except SchemaError as error:
            raise _ChainError(f"Error parsing {syntax} syntax", str(error)) from None
        fds = getattr(device, "fds", None) or ()
        return _Call("PUT", endpoint, encode(device), tuple(fds))

    return make


def _create(words: list[str]) -> _Call:
    if len(words) > 1:
        raise UsageError("takes at most one argument")
    path = words[0] if words else "-"
    try:
        if path == "-":
            return _Call("PUT", "vm.create", sys.stdin.buffer.read(_MAX_FILE_BYTES + 1))
        with open(path, "rb") as file:
            return _Call("PUT", "vm.create", file.read(_MAX_FILE_BYTES + 1))
    except OSError as error:
        place = "stdin" if path == "-" else "file"
        raise _ChainError(f"Error reading from {place}", str(error.strerror)) from None


def _options(words: list[str], names: Sequence[str]) -> dict[str, str]:
    """Return the values of options, each of which is given at most once."""
    found: dict[str, str] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name not in names or name in found:
            raise UsageError(f"unexpected {name!r:.40}")
        if not equals and not words:
            raise UsageError(f"{name} needs a value")
        found[name] = value if equals else words.pop(0)
    return found


_SHIFTS: Final = {"K": 10, "M": 20, "G": 30}


def _size(text: str, what: str) -> int:
    shift = _SHIFTS.get(text[-1:], 0)
    digits = text[:-1] if shift else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20:
        raise _ChainError(what, f"{text!r:.40} is not a number of bytes, perhaps with K, M or G")
    return int(digits) << shift


def _resize(words: list[str]) -> _Call:
    given = _options(words, ("--cpus", "--memory", "--balloon"))
    body: dict[str, int | None] = dict.fromkeys(("desired_vcpus", "desired_ram", "desired_balloon"))
    if (cpus := given.get("--cpus")) is not None:
        if not (cpus.isascii() and cpus.isdigit()) or len(cpus) > 10:
            raise _ChainError("Error parsing CPU count", f"{cpus!r:.40} is not a number")
        body["desired_vcpus"] = int(cpus)
    if (memory := given.get("--memory")) is not None:
        body["desired_ram"] = _size(memory, "Error parsing memory size")
    if (balloon := given.get("--balloon")) is not None:
        body["desired_balloon"] = _size(balloon, "Error parsing balloon size")
    return _Call("PUT", "vm.resize", json.dumps(body).encode())


def _resizing(endpoint: str, option: str, key: str, what: str) -> Callable[[list[str]], _Call]:
    def make(words: list[str]) -> _Call:
        given = _options(words, (option, "--size"))
        if len(given) != 2:
            raise UsageError(f"needs {option} and --size")
        body = {"id": given[option], key: _size(given["--size"], what)}
        return _Call("PUT", endpoint, json.dumps(body).encode())

    return make


def _described(endpoint: str, what: str) -> Callable[[list[str]], _Call]:
    """Return what makes a call whose body is described as an option is, with descriptors."""

    def make(words: list[str]) -> _Call:
        text = _one(words)
        check_packages()
        from crosvm_py.vm_config import restore_option
        from crosvm_py.vm_config.codec import encode
        from crosvm_py.vm_config.errors import SchemaError
        from crosvm_py.vm_config.option_grammar import parse_option
        from crosvm_py.vm_config.requests import VmSendMigrationData

        body: Record
        fds: tuple[int, ...] = ()
        try:
            if endpoint == "vm.restore":
                body, fds = restore_option.parse_restore("restore", text)
            elif endpoint == "vm.receive-migration":
                body, fds = restore_option.parse_receive("receive-migration", text)
            else:
                body = parse_option("send-migration", text, VmSendMigrationData)
        except SchemaError as error:
            raise _ChainError(f"Error parsing {what}", str(error)) from None
        return _Call("PUT", endpoint, encode(body), fds)

    return make


def _add(endpoint: str, option: str, syntax: str, about: str) -> _Command:
    return _Command(_adding(endpoint, option, syntax), "KEY=VALUE,…", about)


def _put(endpoint: str, about: str) -> _Command:
    return _Command(_simple(endpoint), "", about)


COMMANDS: Final[dict[str, _Command]] = {
    "add-device": _add("vm.add-device", "--device", "device", "add a VFIO device"),
    "add-disk": _add("vm.add-disk", "--disk", "disk", "add a disk"),
    "add-fs": _add("vm.add-fs", "--fs", "filesystem", "add a shared directory"),
    "add-generic-vhost-user": _add(
        "vm.add-generic-vhost-user",
        "--generic-vhost-user",
        "generic vhost-user",
        "add a vhost-user device",
    ),
    "add-net": _add("vm.add-net", "--net", "network", "add a network card"),
    "add-pmem": _add("vm.add-pmem", "--pmem", "persistent memory", "add persistent memory"),
    "add-user-device": _add(
        "vm.add-user-device", "--user-device", "user device", "add a vfio-user device"
    ),
    "add-vdpa": _add("vm.add-vdpa", "--vdpa", "vDPA device", "add a vDPA device"),
    "add-vsock": _add("vm.add-vsock", "--vsock", "vsock", "add the vsock device"),
    "boot": _put("vm.boot", "boot the VM that was created"),
    "coredump": _Command(_with_text("vm.coredump", "destination_url"), "URL", "dump the memory"),
    "counters": _Command(_simple("vm.counters", "GET"), "", "counters of the devices"),
    "create": _Command(_create, "[PATH|-]", "create the VM that a JSON file describes"),
    "delete": _put("vm.delete", "end the VM and forget it"),
    "info": _Command(_simple("vm.info", "GET"), "", "configuration and state of the VM"),
    "nmi": _put("vm.nmi", "send a non-maskable interrupt"),
    "pause": _put("vm.pause", "hold the VM still"),
    "ping": _Command(_simple("vmm.ping", "GET"), "", "ask whether the VMM is there"),
    "power-button": _put("vm.power-button", "press the power button"),
    "reboot": _put("vm.reboot", "reboot the VM"),
    "receive-migration": _Command(
        _described("vm.receive-migration", "receive migration configuration"),
        "KEY=VALUE,…",
        "receive a VM",
    ),
    "remove-device": _Command(_with_text("vm.remove-device", "id"), "ID", "remove a device"),
    "resize": _Command(
        _resize, "[--cpus N] [--memory SIZE] [--balloon SIZE]", "resize vCPUs, memory, balloon"
    ),
    "resize-disk": _Command(
        _resizing("vm.resize-disk", "--disk", "desired_size", "Invalid disk size"),
        "--disk ID --size SIZE",
        "resize a disk",
    ),
    "resize-zone": _Command(
        _resizing("vm.resize-zone", "--id", "desired_ram", "Error parsing memory size"),
        "--id ID --size SIZE",
        "resize a memory zone",
    ),
    "restore": _Command(
        _described("vm.restore", "restore syntax"), "KEY=VALUE,…", "restore a VM from a snapshot"
    ),
    "resume": _put("vm.resume", "let a paused VM go on"),
    "send-migration": _Command(
        _described("vm.send-migration", "send migration configuration"),
        "KEY=VALUE,…",
        "send the VM",
    ),
    "shutdown": _put("vm.shutdown", "end the VM"),
    "shutdown-vmm": _put("vmm.shutdown", "end the VMM"),
    "snapshot": _Command(_with_text("vm.snapshot", "destination_url"), "URL", "make a snapshot"),
}


def _help() -> str:
    head = f"Usage: {NAME} --api-socket PATH COMMAND [ARGUMENTS]\n\n"
    lines = [
        f"  {name} {command.arguments}".rstrip() + f": {command.about}"
        for name, command in COMMANDS.items()
    ]
    return head + "\n".join(lines) + "\n"
