# SPDX-License-Identifier: BSD-3-Clause
"""``--serial``: the COM ports and the debug console, and what they are when nobody asks."""

from __future__ import annotations

from crosvm_py.cli import keyvalue
from crosvm_py.cli.options import Option
from crosvm_py.config import SerialSpec
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.options import Arguments

COM_PORTS: Final = 4
TYPES: Final = ("stdout", "file", "sink", "syslog", "unix")
HARDWARE: Final = ("serial", "debugcon")
DEFAULT_DEBUGCON_PORT: Final = 0x402

# Where the machine has other devices: PIC, PIT, i8042, RTC, UARTs, pvpanic, ACPI PM, PCI.
_TAKEN_PORTS: Final = (
    range(0x20, 0x22),
    range(0x40, 0x44),
    range(0x60, 0x65),
    range(0x70, 0x72),
    range(0xA0, 0xA2),
    range(0x2E8, 0x2F0),
    range(0x2F8, 0x300),
    range(0x3E8, 0x3F0),
    range(0x3F8, 0x400),
    range(0x4D0, 0x4D2),
    range(0x505, 0x506),
    range(0x600, 0x608),
    range(0xCF8, 0xD00),
)

_TYPE: Final = keyvalue.choice("type", "where the guest's output goes", TYPES, "").needed()
_HARDWARE: Final = keyvalue.choice("hardware", "a UART or port 0x402", HARDWARE, "serial")
_NUM: Final = keyvalue.integer("num", "which COM port, 1 to 4", 1)
_PATH: Final = keyvalue.string("path", "of the file or the unix socket")
_INPUT: Final = keyvalue.string("input", "a file or FIFO that the guest reads")
_CONSOLE: Final = keyvalue.flag("console", "append console=ttySN to the kernel command line")
_EARLYCON: Final = keyvalue.flag("earlycon", "the kernel's early messages come here")
_STDIN: Final = keyvalue.flag("stdin", "the guest reads our stdin")
_PORT: Final = keyvalue.integer("debugcon-port", "I/O port of a debugcon", DEFAULT_DEBUGCON_PORT)

_FIELDS: Final = (
    _TYPE,
    _HARDWARE,
    _NUM,
    _PATH,
    _INPUT,
    _CONSOLE,
    _EARLYCON,
    _STDIN,
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
    )
    problem = _problem(spec)
    if problem:
        raise ConfigError(f"{option}: {problem} (in {text!r})")
    return spec


def _problem(spec: SerialSpec) -> str | None:
    """Return what one --serial asks for that cannot be, or None."""
    serial = spec.hardware == "serial"
    checks = {
        f"num={spec.num} is not in 1..{COM_PORTS}": serial and not 1 <= spec.num <= COM_PORTS,
        f"debugcon-port={spec.debugcon_port:#x} is not in 1..0xffff": not (
            1 <= spec.debugcon_port <= 0xFFFF
        ),
        f"debugcon-port={spec.debugcon_port:#x} is another device's": any(
            spec.debugcon_port in ports for ports in _TAKEN_PORTS
        ),
        f"type={spec.type} needs path=": spec.type in ("file", "unix") and not spec.path,
        f"type={spec.type} takes no path=": spec.type not in ("file", "unix")
        and spec.path is not None,
        "input= is empty": spec.input == "",
        "input= and stdin exclude each other": spec.input is not None and spec.stdin,
        "a debugcon can be no console": not serial and (spec.console or spec.earlycon),
        "a debugcon has no input": not serial and (spec.stdin or spec.input is not None),
    }
    return next((problem for problem, wrong in checks.items() if wrong), None)


SERIAL: Final = Option(
    "--serial",
    "type=TYPE[,KEY=VALUE…]",
    "a serial port; COM1 is the console on stdin and stdout unless you say otherwise",
    _read_serial,
    repeatable=True,
    fields=_FIELDS,
)


def serial_ports(arguments: Arguments) -> tuple[SerialSpec, ...]:
    """Return all serial ports: those asked for, then crosvm's defaults for the other COM ports.

    COM1 becomes the console when no port is one and nobody configured it; the rest are sinks.

    Raises:
        ConfigError: two ports claim the same place, the console, or stdin.
    """
    specs = list(arguments.every(SERIAL))
    places = [_place(spec) for spec in specs]
    for place in places:
        if places.count(place) > 1:
            raise ConfigError(f"--serial: {place} is configured twice")
    for claim in ("console", "earlycon", "stdin"):
        claimants = [_place(spec) for spec in specs if getattr(spec, claim)]
        if len(claimants) > 1:
            raise ConfigError(
                f"--serial: only one port can have {claim}, got {' and '.join(claimants)}"
            )
    if "COM1" not in places and not any(spec.console for spec in specs):
        stdin = not any(spec.stdin for spec in specs)
        specs.append(SerialSpec(type="stdout", num=1, console=True, stdin=stdin))
    taken = {_place(spec) for spec in specs}
    specs += [
        SerialSpec(type="sink", num=num)
        for num in range(1, COM_PORTS + 1)
        if f"COM{num}" not in taken
    ]
    return tuple(specs)


def _place(spec: SerialSpec) -> str:
    return f"COM{spec.num}" if spec.hardware == "serial" else f"port {spec.debugcon_port:#x}"
