# SPDX-License-Identifier: BSD-3-Clause
"""A reset of the machine leaves each register of a device as a new device has it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from devices.acpi_pm import PM1_LENGTH, AcpiPm
from devices.cmos import CMOS_LENGTH, Cmos
from devices.ged import GED_BYTES, GED_PCI, EventDevice
from devices.i8042 import I8042, I8042_LENGTH
from devices.legacy_ports import COM_PORT_LENGTH
from devices.pci.hotplug import HOTPLUG_BYTES, PciHotplugController
from devices.pci.root import CONFIG_PORTS_BYTES, ConfigPorts, PciRoot
from devices.serial import Uart
from devices.watchdog import WATCHDOG_BYTES, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1772372759.25


class Line:
    """An interrupt line, and the level that it has now."""

    def __init__(self) -> None:
        self.level = False

    def set_level(self, asserted: bool) -> None:
        self.level = asserted


class Sink:
    def write(self, data: bytes) -> None:
        assert data


def nothing(*_args: object) -> None:
    """Stand for what a device calls."""


def a_cmos(line: Line) -> Cmos:
    return Cmos(line, lambda _seconds, _callback: None, clock=lambda: NOW)


def a_uart(line: Line) -> Uart:
    return Uart(Sink(), line)


def a_pm(line: Line) -> AcpiPm:
    return AcpiPm(line, nothing)


def a_watchdog(_line: Line) -> Watchdog:
    return Watchdog(nothing, nothing, clock=lambda: NOW)


Device = AcpiPm | Cmos | ConfigPorts | EventDevice | I8042 | PciHotplugController | Uart | Watchdog

DEVICES: dict[str, tuple[Callable[[Line], Device], int]] = {
    "acpi_pm": (a_pm, PM1_LENGTH),
    "cmos": (a_cmos, CMOS_LENGTH),
    "config_ports": (lambda _line: ConfigPorts(PciRoot(), nothing), CONFIG_PORTS_BYTES),
    "ged": (EventDevice, GED_BYTES),
    "hotplug": (lambda _line: PciHotplugController(nothing), HOTPLUG_BYTES),
    "i8042": (lambda _line: I8042(nothing), I8042_LENGTH),
    "uart": (a_uart, COM_PORT_LENGTH),
    "watchdog": (a_watchdog, WATCHDOG_BYTES),
}
# Beside callbacks: how many timers there were, and that one may still run.
NOT_REGISTERS = {"_tick", "_tick_at", "_ticking", "_period_runs"}


def registers(device: Device) -> dict[str, object]:
    plain = (bool, int, float, str, bytes, type(None))
    found = {name: value for name, value in vars(device).items() if isinstance(value, plain)}
    lists = {
        name: list(value)
        for name, value in vars(device).items()
        if not isinstance(value, plain) and hasattr(value, "__len__") and hasattr(value, "__iter__")
    }
    return {name: value for name, value in {**found, **lists}.items() if name not in NOT_REGISTERS}


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("seed", range(4))
def test_reset_after_any_accesses_leaves_a_new_device(name: str, seed: int) -> None:
    make, length = DEVICES[name]
    line, chance = Line(), random.Random(seed)
    device = make(line)
    for _ in range(300):
        size = chance.choice((1, 2, 4))
        offset = chance.randrange(length)
        if chance.random() < 0.3:
            device.read(offset, size)
        else:
            device.write(offset, size, chance.getrandbits(8 * size))
    device.reset()
    assert registers(device) == registers(make(Line()))
    assert not line.level


def test_reset_lowers_the_line_of_a_button_that_was_pressed() -> None:
    line = Line()
    power = a_pm(line)
    power.write(2, 2, 0x100)
    power.press_power_button()
    assert line.level
    power.reset()
    assert not line.level


def test_reset_forgets_events_and_slots_that_the_guest_was_not_told_of() -> None:
    events, slots = EventDevice(Line()), PciHotplugController(nothing)
    events.tell(GED_PCI)
    slots.plugged(5)
    slots.ask_to_eject(6)
    events.reset()
    slots.reset()
    assert (events.read(0, 1), slots.read(0, 4), slots.read(4, 4)) == (0, 0, 0)


def test_reset_of_a_uart_keeps_the_input_that_waits() -> None:
    uart = a_uart(Line())
    uart.receive(b"ab")
    uart.reset()
    uart.write(4, 1, 2)  # MCR: RTS, so that the guest hears the line
    assert (uart.read(0, 1), uart.read(0, 1)) == (ord("a"), ord("b"))


def test_timer_of_the_clock_before_a_reset_interrupts_nobody_after_it() -> None:
    timers: list[Callable[[], None]] = []
    line = Line()
    now = [NOW]
    cmos = Cmos(line, lambda _seconds, call: timers.append(call), clock=lambda: now[0])
    cmos.write(0, 1, 0x0B)
    cmos.write(1, 1, 0x52)  # periodic and update interrupts
    cmos.reset()
    now[0] += 2
    for timer in timers:
        timer()
    assert not line.level
    cmos.write(0, 1, 0x0B)
    cmos.write(1, 1, 0x42)
    assert len(timers) == 3  # the periodic interrupt has a timer again


def test_reset_of_the_root_gives_the_bridge_its_registers_back() -> None:
    root = PciRoot()
    root.write(0, 0x3C, 1, 0x0B)
    root.reset()
    assert root.read(0, 0x3C, 1) == 0
