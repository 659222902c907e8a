# SPDX-License-Identifier: BSD-3-Clause
"""ACPI fixed hardware: PM1 event and control blocks (ACPI 6.5 §4.8.3).

Layout: PM1_STS at 0, PM1_EN at 2, PM1_CNT at 4, two bytes each; 6 and 7 read as zero, so that a
32-bit access to the control block works. The machine is always in ACPI mode: SCI_EN is wired to
one and the FADT has no SMI command port.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import IrqLine

PM1_LENGTH: Final = 8
PM1_EVENT_OFFSET: Final = 0
PM1_CONTROL_OFFSET: Final = 4

GBL_STS: Final = 1 << 5
PWRBTN_STS: Final = 1 << 8
WAK_STS: Final = 1 << 15

RTC_STS: Final = 1 << 10

# The bits of PM1_EN that the guest can set: the global lock and the power button. Timer and sleep
# button are absent (the FADT says so), so their bits stay zero. The RTC alarm is absent too, but
# Linux enables its event all the same and logs an error when the bit reads back as zero.
PM1_EN_MASK: Final = GBL_STS | PWRBTN_STS | RTC_STS

SCI_EN: Final = 1 << 0
BM_RLD: Final = 1 << 1
SLP_TYP_SHIFT: Final = 10
SLP_TYP_MASK: Final = 7 << SLP_TYP_SHIFT
SLP_EN: Final = 1 << 13

# The SLP_TYPa of the DSDT's \_S5 package.
S5_SLEEP_TYPE: Final = 0


class AcpiPm:
    """Power button, power-off and the system control interrupt."""

    def __init__(self, sci: IrqLine, on_power_off: Callable[[], None]) -> None:
        self._sci = sci
        self._on_power_off = on_power_off
        self._level = False
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts."""
        self._status = 0
        self._enable = 0
        self._control = SCI_EN
        self._update()

    def press_power_button(self) -> None:
        """Tell the guest that somebody pressed the power button."""
        self._status |= PWRBTN_STS
        self._update()

    def read(self, offset: int, size: int) -> int:
        registers = self._status | self._enable << 16 | self._control << 32
        return (registers >> (8 * (offset & 7))) & ((1 << (8 * size)) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Apply an access byte by byte; SLP_EN acts last, when SLP_TYP is in place."""
        sleep = False
        for i in range(min(size, PM1_LENGTH - (offset & 7))):
            sleep |= self._write_byte((offset & 7) + i, (value >> (8 * i)) & 0xFF)
        self._update()
        if sleep:
            self._enter_sleep()

    def _write_byte(self, at: int, value: int) -> bool:
        """Write one byte and return whether it asks to sleep."""
        shift = 8 * (at & 1)
        bits = value << shift
        mask = 0xFF << shift
        if at < 2:
            self._status &= ~bits  # writing a one clears the bit
        elif at < 4:
            self._enable = (self._enable & ~mask) | (bits & PM1_EN_MASK)
        elif at < 6:
            kept = (self._control & ~mask) | (bits & (BM_RLD | SLP_TYP_MASK))
            self._control = kept | SCI_EN
            return bool(bits & SLP_EN)
        return False

    def _enter_sleep(self) -> None:
        if (self._control & SLP_TYP_MASK) >> SLP_TYP_SHIFT == S5_SLEEP_TYPE:
            self._on_power_off()
        else:
            # No other state exists: a guest that tries one wakes up at once.
            self._status |= WAK_STS
            self._update()

    def _update(self) -> None:
        level = bool(self._status & self._enable)
        if level != self._level:
            self._level = level
            self._sci.set_level(level)
