# SPDX-License-Identifier: BSD-3-Clause
"""``--serial``: COM ports, virtio ports and debug consoles, and the defaults without it."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup
from crosvm_py.cli.run_options.twice import first_twice
from crosvm_py.config import VIRTIO_CONSOLE, SerialSpec
from devices.legacy_ports import COM_PORTS, DEBUGCON_PORT, TAKEN
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments

TYPES: Final = ("stdout", "file", "sink", "syslog", "unix", "unix-stream", "pty")
PATH_TYPES: Final = ("file", "unix", "unix-stream")
HARDWARE: Final = ("serial", VIRTIO_CONSOLE, "debugcon")
# Linux has hvc0 to hvc15.
VIRTIO_PORTS: Final = 16
MAX_NAME_CHARS: Final = 64

_TYPE: Final = keyvalue.choice("type", "where the guest's output goes", TYPES, "").needed()
_HARDWARE: Final = keyvalue.choice(
    "hardware",
    "what the guest sees: a COM port, a virtio port, or a debug console",
    HARDWARE,
    "serial",
)
_NUM: Final = keyvalue.integer(
    "num", "number of the COM port, 1 to 4, or of the virtio port, 1 to 16", 1
)
_PATH: Final = keyvalue.string("path", "the file, or the socket of unix and unix-stream")
_INPUT: Final = keyvalue.string("input", "a file or FIFO that the guest reads as its input")
_CONSOLE: Final = keyvalue.flag(
    "console", "the kernel's console: console=ttySN or hvcN is appended to its command line"
)
_EARLYCON: Final = keyvalue.flag("earlycon", "the kernel's earliest messages come here, too")
_STDIN: Final = keyvalue.flag("stdin", "the guest reads the stdin of crosvm")
_NAME: Final = keyvalue.string(
    "name",
    "name of a virtio port; without console the guest sees a byte channel /dev/vportNpM, and no "
    "terminal",
)
_INPUT_STREAM: Final = keyvalue.flag(
    "input-unix-stream", "the guest reads the socket of a unix-stream, too"
)
_PORT: Final = keyvalue.integer(
    "debugcon-port",
    "I/O port of a debug console",
    DEBUGCON_PORT,
    shown=f"{DEBUGCON_PORT:#x}",
)

_FIELDS: Final = (
    _TYPE,
    _HARDWARE,
    _NUM,
    _PATH,
    _INPUT,
    _CONSOLE,
    _EARLYCON,
    _STDIN,
    _NAME,
    _INPUT_STREAM,
    _PORT,
)


def _read_serial(option: str, text: str) -> SerialSpec:
    values = keyvalue.parse(option, text, _FIELDS)
    spec = SerialSpec(
        type=values[_TYPE],
        hardware=values[_HARDWARE],
        num=values[_NUM],
        path=values[_PATH],
        input=values[_INPUT],
        console=values[_CONSOLE],
        earlycon=values[_EARLYCON],
        stdin=values[_STDIN],
        debugcon_port=values[_PORT],
        name=values[_NAME],
        input_unix_stream=values[_INPUT_STREAM],
    )
    problem = _problem(spec)
    if problem:
        raise ConfigError(f"{option}: {problem} (in {text!r})")
    return spec


def _problem(spec: SerialSpec) -> str | None:
    """Return why one --serial is impossible, or None if it is possible."""
    serial, debugcon = spec.hardware == "serial", spec.hardware == "debugcon"
    virtio = spec.hardware == "virtio-console"
    checks = {
        f"num={spec.num} is not in 1..{len(COM_PORTS)}": serial and spec.num not in COM_PORTS,
        f"num={spec.num} is not in 1..{VIRTIO_PORTS}": virtio and not 1 <= spec.num <= VIRTIO_PORTS,
        f"debugcon-port={spec.debugcon_port:#x} is not in 1..0xffff": not (
            1 <= spec.debugcon_port <= 0xFFFF
        ),
        f"debugcon-port={spec.debugcon_port:#x} is another device's": any(
            spec.debugcon_port in ports for ports in TAKEN
        ),
        f"type={spec.type} needs path=": spec.type in PATH_TYPES and not spec.path,
        f"type={spec.type} takes no path=": spec.type not in PATH_TYPES and spec.path is not None,
        "a debugcon can be no console": debugcon and (spec.console or spec.earlycon),
        "a debugcon has no input": debugcon and _inputs(spec) > 0,
        "a virtio-console is found too late for earlycon": virtio and spec.earlycon,
        "only a virtio-console has a name=": spec.name is not None and not virtio,
        f"name={spec.name!r:.80} is not 1 to {MAX_NAME_CHARS} letters, digits, '.', '_' or '-'": (
            spec.name is not None and not _is_name(spec.name)
        ),
    }
    return next((problem for problem, wrong in checks.items() if wrong), _input_problem(spec))


def _input_problem(spec: SerialSpec) -> str | None:
    checks = {
        "input= is empty": spec.input == "",
        "input= and stdin exclude each other": spec.input is not None and spec.stdin,
        "input-unix-stream is for type=unix-stream": spec.input_unix_stream
        and spec.type != "unix-stream",
        "input-unix-stream and other input exclude each other": spec.input_unix_stream
        and _inputs(spec) > 1,
        "a pty is the input too": spec.type == "pty" and _inputs(spec) > 0,
    }
    return next((problem for problem, wrong in checks.items() if wrong), None)


def _inputs(spec: SerialSpec) -> int:
    return spec.stdin + (spec.input is not None) + spec.input_unix_stream


def _is_name(text: str) -> bool:
    """Return whether a name is possible in a command line and in /dev/virtio-ports."""
    plain = text.isascii() and text.replace("-", "").replace("_", "").replace(".", "").isalnum()
    return plain and len(text) <= MAX_NAME_CHARS


SERIAL: Final = Option(
    "--serial",
    "type=TYPE[,KEY=VALUE…]",
    "a serial port; may be repeated. Without any, COM1 is the console, on stdin and stdout",
    _read_serial,
    repeatable=True,
    fields=_FIELDS,
)
GROUP: Final = OptionGroup(
    "Consoles and serial ports",
    (SERIAL,),
    examples=("crosvm run --serial type=file,path=console.log,console vmlinux",),
)


def serial_ports(arguments: Arguments) -> tuple[SerialSpec, ...]:
    """Return all serial ports: those of ``--serial``, then crosvm's defaults for other COM ports.

    COM1 is the console by default, if no other port is. The rest are sinks.

    Raises:
        ConfigError: two ports claim the same place or name, the console, or stdin.
    """
    specs = list(arguments.every(SERIAL))
    places = [spec.place() for spec in specs]
    place = first_twice(places)
    if place is not None:
        raise ConfigError(f"--serial: {place} is configured twice")
    name = first_twice(spec.name for spec in specs)
    if name is not None:
        named = " and ".join(spec.place() for spec in specs if spec.name == name)
        raise ConfigError(f"--serial: name={name} is given to {named}, of which each needs its own")
    for claim in ("console", "earlycon", "stdin"):
        claimants = [spec.place() for spec in specs if getattr(spec, claim)]
        if len(claimants) > 1:
            raise ConfigError(
                f"--serial: only one port can have {claim}, got {' and '.join(claimants)}"
            )
    if "COM1" not in places and not any(spec.console for spec in specs):
        stdin = not any(spec.stdin for spec in specs)
        specs.append(SerialSpec(type="stdout", num=1, console=True, stdin=stdin))
    taken = {spec.place() for spec in specs}
    specs += [SerialSpec(type="sink", num=num) for num in COM_PORTS if f"COM{num}" not in taken]
    return tuple(specs)
