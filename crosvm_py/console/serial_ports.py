# SPDX-License-Identifier: BSD-3-Clause
"""The four COM ports and debug consoles of a machine, from ``--serial`` to the I/O bus.

``open_serial_ports`` opens everything on the host, before anything is forked. ``attach`` puts the
devices on the bus and starts reading. ``close`` gives slow readers a moment to read the guest's
last output, and gives the terminal back to the user.
"""

from __future__ import annotations

import os
import time

from crosvm_py.config import VIRTIO_CONSOLE
from crosvm_py.console.ends import open_ends
from crosvm_py.console.input import TerminalInput
from crosvm_py.console.output import NullSink
from crosvm_py.console.targets import sink_through_relay, sink_to, stream_to
from devices.debugcon import DEBUGCON_LENGTH, DebugConsole
from devices.irq_line import SharedIrqLine
from devices.legacy_ports import COM_PORT_LENGTH, COM_PORTS
from devices.serial import Uart
from sys_util import log as logging
from sys_util import signal
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crosvm_py.config import SerialSpec
    from crosvm_py.console.ends import Ends
    from crosvm_py.console.input import ConsoleInput, TimerLoop
    from crosvm_py.console.output import Sink
    from crosvm_py.console.terminal import Terminal
    from crosvm_py.console.virtio_console import VirtioConsole
    from crosvm_py.relay.outlet import Outlet
    from devices.bus import Bus, IrqLine

log = logging.get_logger("crosvm.serial")

# The most time that slow readers of all ports together get for the last output.
DRAIN_SECONDS: Final = 1.0


class _Port(NamedTuple):
    """One device, with its output and input on the host open."""

    spec: SerialSpec
    sink: Sink
    input: ConsoleInput | None
    pty_fd: int = -1
    pty_name: str = ""


class SerialPorts:
    """All serial devices of one machine. Owns their descriptors and the terminal's modes."""

    def __init__(
        self,
        ports: Sequence[_Port],
        terminal: Terminal | None,
        virtio: VirtioConsole | None = None,
        outlets: Sequence[Outlet] = (),
    ) -> None:
        self.uarts: dict[int, Uart] = {}
        self.virtio = virtio
        # If the vmm is killed, the warden calls terminal.restore().
        self.terminal = terminal
        self._ports = tuple(ports)
        self._outlets = tuple(outlets)
        self._help_sink: Sink = NullSink()
        self._undo_signals: Callable[[], None] | None = None

    @property
    def kernel_parameters(self) -> tuple[str, ...]:
        """The parameters for the kernel's command line: console= and earlycon=."""
        parameters = []
        for spec in (port.spec for port in self._ports if port.spec.hardware == "serial"):
            if spec.console:
                parameters.append(f"console=ttyS{spec.num - 1}")
            if spec.earlycon:
                parameters.append(f"earlycon=uart8250,io,{COM_PORTS[spec.num].port:#x}")
        if self.virtio is not None:
            parameters += self.virtio.kernel_parameters
        return tuple(parameters)

    @property
    def ptys(self) -> tuple[tuple[str, str], ...]:
        """The pseudo-terminals: the place of the port in the machine, and the path."""
        found = tuple((port.spec.place(), port.pty_name) for port in self._ports if port.pty_name)
        return found if self.virtio is None else (*found, *self.virtio.ptys)

    def take_outlets(self) -> tuple[Outlet, ...]:
        """Return the relay's outlets for ports with datagram sockets; the caller owns them."""
        outlets, self._outlets = self._outlets, ()
        return outlets

    def attach(
        self,
        bus: Bus,
        irq_line: Callable[[int], IrqLine],
        loop: TimerLoop,
        lock: AbstractContextManager[bool],
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        """Put the devices on ``bus`` and start to read; a terminal becomes raw.

        ``irq_line`` is called once for each IRQ. ``on_leave`` is called in the loop's thread when
        the user types Ctrl-A x; without it the process gets SIGTERM. If there is a terminal, call
        this in the main thread: SIGTTIN, SIGTTOU and SIGCONT are handled until ``close``.

        Raises:
            ConfigError: the I/O port of a debug console is in use.
        """
        lines = {
            irq: SharedIrqLine(irq_line(irq))
            for irq in sorted({com.irq for com in COM_PORTS.values()})
        }
        for port in self._ports:
            port.sink.attach(loop, lock)
            if port.spec.hardware == "debugcon":
                _insert(bus, port.spec.debugcon_port, DEBUGCON_LENGTH, DebugConsole(port.sink))
                continue
            base, irq = COM_PORTS[port.spec.num]
            uart = Uart(port.sink, lines[irq].add_source())
            _insert(bus, base, COM_PORT_LENGTH, uart)
            self.uarts[port.spec.num] = uart
            if isinstance(port.input, TerminalInput):
                self._attach_terminal(port.input, loop, lock, on_leave)
            if port.input is not None:
                port.input.start(uart, loop, lock)
        if self.virtio is not None:
            if self.virtio.keys is not None:
                self._attach_terminal(self.virtio.keys, loop, lock, on_leave)
            self.virtio.start(loop, lock)

    def close(self) -> None:
        """Write the last output, for readers that are fast enough, and close everything.

        The event loop no longer runs. May be called again.
        """
        if self.terminal is not None:
            self.terminal.leave()
        ports, self._ports = self._ports, ()
        for outlet in self.take_outlets():
            outlet.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        for port in ports:
            port.sink.drain(max(0.0, deadline - time.monotonic()))
            port.sink.close()
            if port.input is not None:
                port.input.close()
            if port.pty_fd >= 0:
                os.close(port.pty_fd)
        if self.virtio is not None:
            self.virtio.close()
        self._help_sink.close()
        if self._undo_signals is not None:
            self._undo_signals()
            self._undo_signals = None

    def _on_continue(self) -> None:
        """After SIGCONT set raw mode again, if we are in the foreground, and check the size."""
        if self.terminal is not None and self.terminal.is_raw and self.terminal.in_foreground():
            self.terminal.enter()
        if self.virtio is not None:
            self.virtio.check_sizes()

    def _attach_terminal(
        self,
        keys: TerminalInput,
        loop: TimerLoop,
        lock: AbstractContextManager[bool],
        on_leave: Callable[[], None] | None,
    ) -> None:
        from crosvm_py.console.terminal import HELP, handle_job_control

        def on_continue() -> None:
            loop.call_soon_threadsafe(self._on_continue)

        self._undo_signals = handle_job_control(on_continue)
        self._help_sink = help_sink = stream_to(keys.terminal.fd, "terminal")
        help_sink.attach(loop, lock)
        keys.on_help = lambda: help_sink.write(HELP)
        keys.on_leave = on_leave or (lambda: signal.raise_signal(signal.SIGTERM))


def open_serial_ports(specs: Sequence[SerialSpec]) -> SerialPorts:
    """Open the output and input of every serial port; COM ports without a spec drop all output.

    Raises:
        ConfigError: the specs contradict each other.
        HostError: something cannot be opened; nothing stays open.
    """
    _check(specs)
    ports: list[_Port] = []
    outlets: list[Outlet] = []
    terminal: Terminal | None = None
    virtio: VirtioConsole | None = None
    try:
        for spec in specs:
            if spec.hardware == VIRTIO_CONSOLE:
                continue
            ends = open_ends(spec)
            sink = _sink(ends, outlets)
            ports.append(_Port(spec, sink, ends.input, ends.pty_fd, ends.pty_name))
            terminal = terminal or ends.terminal
        if any(spec.hardware == VIRTIO_CONSOLE for spec in specs):
            from crosvm_py.console.virtio_console import open_virtio_console

            virtio = open_virtio_console(specs)
            terminal = terminal or virtio.terminal
    except BaseException:
        SerialPorts(ports, None, outlets=outlets).close()
        raise
    return SerialPorts([*ports, *_unused(specs)], terminal, virtio, outlets)


def _sink(ends: Ends, outlets: list[Outlet]) -> Sink:
    """Make the sink of a port; if it needs the relay, add its outlet to ``outlets``."""
    if ends.target is None:
        return NullSink()
    if ends.target.kind != "lines":
        return sink_to(ends.target)
    try:
        sink, outlet = sink_through_relay(ends.target)
    except BaseException:
        ends.close()
        raise
    outlets.append(outlet)
    return sink


def _unused(specs: Sequence[SerialSpec]) -> list[_Port]:
    from crosvm_py.config import SerialSpec

    used = {spec.num for spec in specs if spec.hardware == "serial"}
    return [
        _Port(SerialSpec(type="sink", num=num), NullSink(), None)
        for num in COM_PORTS
        if num not in used
    ]


def _check(specs: Sequence[SerialSpec]) -> None:
    places: set[str] = set()
    for spec in specs:
        place = _place(spec)
        if place in places:
            raise ConfigError(f"--serial {place}: given twice")
        places.add(place)
        if spec.stdin and spec.input is not None:
            raise ConfigError(f"--serial {place}: input={spec.input} and stdin exclude each other")
    for name in ("console", "stdin"):
        if sum(bool(getattr(spec, name)) for spec in specs) > 1:
            raise ConfigError(f"--serial {name}: only one port can have it")


def _place(spec: SerialSpec) -> str:
    """Check that the hardware supports the options; return the port's name for messages."""
    place = f"num={spec.num}"
    if spec.hardware == "debugcon":
        place = f"debugcon-port={spec.debugcon_port:#x}"
        if spec.console or spec.earlycon or spec.stdin or spec.input is not None:
            raise ConfigError(f"--serial {place}: a debug console is for output only")
    elif spec.hardware == VIRTIO_CONSOLE:
        place = f"hardware={VIRTIO_CONSOLE},num={spec.num}"
        if spec.earlycon:
            raise ConfigError(f"--serial {place}: the kernel finds it too late for earlycon")
    elif spec.hardware != "serial":
        raise ConfigError(
            f"--serial hardware={spec.hardware}: not serial, debugcon or {VIRTIO_CONSOLE}"
        )
    elif spec.num not in COM_PORTS:
        raise ConfigError(f"--serial {place}: not in 1..4")
    return place


def _insert(bus: Bus, base: int, length: int, device: Uart | DebugConsole) -> None:
    try:
        bus.insert(base, length, device)
    except ValueError as error:
        raise ConfigError(f"--serial: port {base:#x} is taken: {error}") from error
