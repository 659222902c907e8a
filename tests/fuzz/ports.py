# SPDX-License-Identifier: BSD-3-Clause
"""Attack the legacy devices of the board: every port, every width, every value (VENOM's kind).

Serial ports with input, keyboard controller, clock, power management, debug console, panic device
and the PCI configuration ports, on a bus as the machine has it. Time passes at its word.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from crosvm_py.machine.x86_64 import layout
from devices.acpi_pm import PM1_LENGTH, AcpiPm
from devices.bus import Bus
from devices.cmos import Cmos
from devices.debugcon import DebugConsole
from devices.i8042 import I8042
from devices.pci.root import ConfigPorts, PciRoot
from devices.pvpanic import PVPANIC_LENGTH, PvPanic
from devices.serial import Uart
from devices.watchdog import WATCHDOG_BYTES, Watchdog
from sys_util import log
from sys_util.event_loop import Timer
from tests.fuzz.source import number, one_in, pick

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import BusDevice
    from tests.fuzz.source import Source

WIDTHS = (1, 1, 1, 2, 4)
STEPS = 60
_WATCHDOG_PORT = 0x700  # the machine has it in memory
MAX_TIMERS = 12
# What a port keeps of input that the guest does not read.
MAX_KEPT_BYTES = 4096


class Line:
    """An interrupt line; a device must not raise what is raised."""

    def __init__(self) -> None:
        self.level = False

    def set_level(self, asserted: bool) -> None:
        self.level = bool(asserted)


class Sink:
    """Count what the guest prints."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> None:
        self.count += len(data)


class PortFuzzer:
    """One board, for many guests."""

    def __init__(self) -> None:
        self.mutations = 0
        log.set_sink(lambda _level, _module, _text: None)
        self.now = 1_790_000_000.0
        self.ends = 0
        self._timers: list[Timer] = []
        self._sink = Sink()
        self._pio = Bus("pio", threading.RLock())
        self._uarts = [Uart(self._sink, Line()) for _ in layout.COM_PORTS]
        cmos = Cmos(
            Line(), self._call_later, low_bytes=1 << 24, high_bytes=1 << 33, clock=lambda: self.now
        )
        devices: list[tuple[int, int, BusDevice]] = [
            *((port, layout.COM_PORT_COUNT, uart) for port, uart in self._ports()),
            (layout.I8042_PORT, layout.I8042_PORT_COUNT, I8042(self._end)),
            (layout.CMOS_PORT, layout.CMOS_PORT_COUNT, cmos),
            (layout.PVPANIC_PORT, PVPANIC_LENGTH, PvPanic(self._end)),
            (layout.ACPI_PM1_EVENT_PORT, PM1_LENGTH, AcpiPm(Line(), self._end)),
            (layout.DEBUGCON_PORT, 1, DebugConsole(self._sink)),
            (
                layout.PCI_CONFIG_PORT,
                layout.PCI_CONFIG_PORT_COUNT,
                ConfigPorts(PciRoot(), self._end),
            ),
            (_WATCHDOG_PORT, WATCHDOG_BYTES, self._watchdog()),
        ]
        for base, count, device in devices:
            self._pio.insert(base, count, device)
        self._places = [
            port for base, count, _ in devices for port in range(base - 1, base + count)
        ]

    def _watchdog(self) -> Watchdog:
        return Watchdog(self._call_later, lambda _seconds: self._end(), lambda: self.now)

    def _ports(self) -> list[tuple[int, Uart]]:
        return list(zip(layout.COM_PORTS, self._uarts, strict=True))

    def _end(self) -> None:
        self.ends += 1  # reset, power-off, panic: what these devices are for

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        assert 0 < seconds < 1 << 30
        timer = Timer(self.now + seconds, callback)
        self._timers.append(timer)
        return timer

    def episode(self, source: Source) -> None:
        """Access ports, let input come and time pass; then see that COM1 still prints."""
        for _ in range(1 + source.below(STEPS)):
            kind = source.below(12)
            if kind == 0:
                self._pass_time(source)
            elif kind == 1:
                self._receive(source)
            elif kind < 4:
                self._set_clock(source)
            else:
                self._access(source)
            assert len(self._timers) <= MAX_TIMERS, "timers pile up"
        self._recover()

    def _access(self, source: Source) -> None:
        self.mutations += 1
        port = source.below(0x1_0000) if one_in(source, 8) else pick(source, self._places)
        width = pick(source, WIDTHS)
        if one_in(source, 3):
            assert 0 <= self._pio.read(port, width) < 1 << 8 * width
        else:
            self._pio.write(port, width, number(source, 8 * width))

    def _set_clock(self, source: Source) -> None:
        """Write to a register of the clock, most often to what makes it interrupt."""
        self.mutations += 1
        self._pio.write(layout.CMOS_PORT, 1, pick(source, (source.below(16), 10, 11, 11)))
        self._pio.write(layout.CMOS_PORT + 1, 1, pick(source, (source.bits(8), 0x26, 0x72)))

    def _receive(self, source: Source) -> None:
        uart = pick(source, self._uarts)
        uart.receive(source.data(source.below(600)))
        kept = len(uart._fifo) + len(uart._line)
        assert kept <= MAX_KEPT_BYTES, "input piles up"

    def _pass_time(self, source: Source) -> None:
        end = self.now + pick(source, (0.0001, 0.01, 0.5, 1.0, 61.0, 90_000.0))
        for _ in range(1000):
            due = [timer for timer in self._timers if timer.deadline <= end]
            if not due:
                break
            timer = min(due, key=lambda timer: timer.deadline)
            self._timers.remove(timer)
            self.now = max(self.now, timer.deadline)
            if timer.callback is not None:
                timer.callback()
        self.now = end

    def _recover(self) -> None:
        """Set COM1 up as a driver does, and print."""
        com1 = layout.COM_PORTS[0]
        for register, value in ((3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3), (1, 0)):
            self._pio.write(com1 + register, 1, value)
        before = self._sink.count
        assert self._pio.read(com1 + 5, 1) & 0x20, "no room to transmit"
        self._pio.write(com1, 1, ord("x"))
        assert self._sink.count == before + 1
        assert self._pio.read(com1 + 3, 1) == 3

    def close(self) -> None:
        """Nothing is held."""
        log.set_sink(log.stderr_sink)


def make(_source: Source) -> PortFuzzer:
    """Build the rig."""
    return PortFuzzer()
