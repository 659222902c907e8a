# SPDX-License-Identifier: BSD-3-Clause
"""Where a PC has its four serial ports, COM1 to COM4."""

from __future__ import annotations

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
