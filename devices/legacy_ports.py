# SPDX-License-Identifier: BSD-3-Clause
"""The I/O ports of a PC: of its devices, COM1 to COM4 among them, and of those that KVM has."""

from __future__ import annotations

from devices.acpi_pm import PM1_LENGTH
from devices.pvpanic import PVPANIC_LENGTH
from sys_util.typing import Final, NamedTuple


class ComPort(NamedTuple):
    """The first I/O port of a UART, and its IRQ; two of the four UARTs share one."""

    port: int
    irq: int


COM_PORTS: Final = {
    1: ComPort(0x3F8, 4),
    2: ComPort(0x2F8, 3),
    3: ComPort(0x3E8, 4),
    4: ComPort(0x2E8, 3),
}
COM_PORT_LENGTH: Final = 8  # registers of each

I8042_PORT: Final = 0x60
I8042_PORT_COUNT: Final = 5
CMOS_PORT: Final = 0x70
CMOS_PORT_COUNT: Final = 2
DEBUGCON_PORT: Final = 0x402  # where firmware writes, unless the user wants another one
PVPANIC_PORT: Final = 0x505
ACPI_PM1_EVENT_PORT: Final = 0x600  # the control register is behind the event registers
PCI_CONFIG_PORT: Final = 0xCF8
PCI_CONFIG_PORT_COUNT: Final = 8

_PICS: Final = ((0x20, 2), (0xA0, 2), (0x4D0, 2))
_PIT: Final = (0x40, 4)

# Where a debug console cannot be.
TAKEN: Final = tuple(
    range(first, first + count)
    for first, count in (
        *(*_PICS, _PIT, (I8042_PORT, I8042_PORT_COUNT), (CMOS_PORT, CMOS_PORT_COUNT)),
        *((com.port, COM_PORT_LENGTH) for com in COM_PORTS.values()),
        *((PVPANIC_PORT, PVPANIC_LENGTH), (ACPI_PM1_EVENT_PORT, PM1_LENGTH)),
        (PCI_CONFIG_PORT, PCI_CONFIG_PORT_COUNT),
    )
)
