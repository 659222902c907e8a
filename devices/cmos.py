# SPDX-License-Identifier: BSD-3-Clause
"""MC146818 real-time clock and 128 bytes of CMOS memory (Motorola MC146818A data sheet).

Ports 0x70 (index, write-only; bit 7 masks NMIs on a PC and is ignored) and 0x71 (data). The clock
shows the host's time in UTC plus an offset, which changes when the guest sets it. The update cycle
takes no time; UIP is set for the 244 µs before it. A guest reads the time one register after the
other, and all of them must show the same moment. So the time is latched for ``LATCH_SECONDS`` when
the guest reads UIP, or else when it reads its first time register.

Interrupts (IRQ 8) are the alarm, the end of an update and the periodic one. Timers run only while
one of them is enabled; a guest that polls register C instead finds the flags of alarm and update
there. A periodic interrupt that nobody acknowledges stops its timer, so ticks never pile up.
"""

from __future__ import annotations

import time

from devices.cmos_time import DAY_SECONDS, days_since_epoch, memory_size_bytes, next_match
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import IrqLine

CMOS_BASE: Final = 0x70
CMOS_LENGTH: Final = 2
CMOS_IRQ: Final = 8
CMOS_BYTES: Final = 128

SECONDS: Final = 0x00
SECONDS_ALARM: Final = 0x01
MINUTES: Final = 0x02
MINUTES_ALARM: Final = 0x03
HOURS: Final = 0x04
HOURS_ALARM: Final = 0x05
DAY_OF_WEEK: Final = 0x06
DAY_OF_MONTH: Final = 0x07
MONTH: Final = 0x08
YEAR: Final = 0x09
REGISTER_A: Final = 0x0A
REGISTER_B: Final = 0x0B
REGISTER_C: Final = 0x0C
REGISTER_D: Final = 0x0D
CENTURY: Final = 0x32  # the FADT's CENTURY field names it

TIME_REGISTERS: Final = frozenset(
    {SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY}
)

A_UIP: Final = 0x80
A_DIVIDER_RESET: Final = 0x60
A_DEFAULT: Final = 0x26  # 32 kHz time base, 1024 Hz periodic rate
B_SET: Final = 0x80
B_PIE: Final = 0x40
B_AIE: Final = 0x20
B_UIE: Final = 0x10
B_BINARY: Final = 0x04
B_24H: Final = 0x02
C_IRQF: Final = 0x80
C_PF: Final = 0x40
C_AF: Final = 0x20
C_UF: Final = 0x10
D_VRT: Final = 0x80

UIP_SECONDS: Final = 244e-6
LATCH_SECONDS: Final = 0.01
# The fastest rates (up to 8 kHz) would keep the event loop busy; Linux uses timers of its own.
MIN_PERIOD_SECONDS: Final = 1 / 1024
# No timer runs longer than this. So one for a distant alarm notices when the host's clock is set,
# and timers that others have replaced (see ``_arm``) end before there are many.
MAX_TICK_SECONDS: Final = 1.0
NEVER: Final = float("inf")

B_INTERRUPTS: Final = B_PIE | B_AIE | B_UIE  # the same bits as in register C
ALARM_ANY: Final = 0xC0  # an alarm register from here on matches every value


class CallLater(Protocol):
    """Call back once, ``seconds`` from now, with the device-model lock held; for any thread."""

    def __call__(self, seconds: float, callback: Callable[[], None]) -> object: ...


class _Civil(NamedTuple):
    """A date and a time of day."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int


class Cmos:
    """Index and data port, the clock, and the memory behind them."""

    def __init__(
        self,
        irq: IrqLine,
        call_later: CallLater,
        *,
        low_bytes: int = 0,
        high_bytes: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._irq = irq
        self._call_later = call_later
        self._clock = clock
        self._sizes = memory_size_bytes(low_bytes, high_bytes)
        self._tick = 0  # the number of the newest timer for alarm and update
        self._period_runs = False
        self._level = False
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts, with the host's time.

        The chip has a battery. This one forgets all the same what the guest has stored in it.
        """
        self._index = 0
        self._memory = bytearray(CMOS_BYTES)
        for at, value in self._sizes.items():
            self._memory[at] = value
        self._a = A_DEFAULT
        self._b = B_24H
        self._c = 0
        self._offset = 0.0  # guest time minus host time
        self._divider_reset = False
        self._frozen: float | None = None  # guest time while the guest stopped the clock
        self._latched = 0.0
        self._latch_until = 0.0
        self._flags_until = self._clock()  # guest time up to which UF and AF are accounted for
        self._tick += 1  # a timer that runs is void
        self._tick_at = NEVER  # when the newest one is due, in host time
        self._update_irq()

    # Ports

    def read(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            value |= (self._read_data() if offset + i == 1 else 0xFF) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            byte = (value >> (8 * i)) & 0xFF
            if offset + i == 0:
                self._index = byte & (CMOS_BYTES - 1)
            elif offset + i == 1:
                self._write_data(byte)

    def _read_data(self) -> int:
        index = self._index
        if index in TIME_REGISTERS:
            return self._time_register(index) & 0xFF
        if index == REGISTER_A:
            return self._read_register_a()
        if index == REGISTER_B:
            return self._b
        if index == REGISTER_C:
            return self._read_register_c()
        if index == REGISTER_D:
            return D_VRT
        return self._memory[index]

    def _write_data(self, value: int) -> None:
        index = self._index
        if index in TIME_REGISTERS:
            self._set_time_register(index, value)
        elif index == REGISTER_A:
            self._account_flags()
            self._change_control(value & ~A_UIP, self._b)
        elif index == REGISTER_B:
            self._account_flags()
            self._change_control(self._a, value)
        elif index in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
            self._account_flags()
            self._memory[index] = value
            self._arm()
        elif index not in (REGISTER_C, REGISTER_D):
            self._memory[index] = value

    # Time

    def _now(self) -> float:
        return self._clock() + self._offset if self._frozen is None else self._frozen

    def _read_register_a(self) -> int:
        now = self._now()
        if self._frozen is None and now % 1.0 >= 1.0 - UIP_SECONDS:
            return self._a | A_UIP
        self._latch(now)
        return self._a

    def _latch(self, now: float) -> None:
        self._latched = now
        self._latch_until = now + LATCH_SECONDS

    def _civil(self) -> _Civil:
        now = self._now()
        # Setting the clock back must not keep the old reading.
        if not self._latched <= now < self._latch_until:
            self._latch(now)
        return _Civil(*time.gmtime(int(self._latched // 1))[:6])

    def _time_register(self, index: int) -> int:
        civil = self._civil()
        if index == HOURS:
            return self._encode_hour(civil.hour)
        days = days_since_epoch(civil.year, civil.month, civil.day)
        return self._encode(
            {
                SECONDS: civil.second,
                MINUTES: civil.minute,
                DAY_OF_WEEK: (days + 4) % 7 + 1,  # 1 is Sunday; the epoch was a Thursday
                DAY_OF_MONTH: civil.day,
                MONTH: civil.month,
                YEAR: civil.year % 100,
                CENTURY: civil.year // 100,
            }[index]
        )

    def _set_time_register(self, index: int, value: int) -> None:
        self._account_flags()
        self._latch_until = self._latched  # the other fields must be those of now
        now = self._now()
        civil = self._civil()
        number = self._decode(value)
        if index == HOURS:
            civil = civil._replace(hour=self._decode_hour(value))
        elif index == YEAR:
            civil = civil._replace(year=civil.year // 100 * 100 + number)
        elif index == CENTURY:
            civil = civil._replace(year=number * 100 + civil.year % 100)
        elif index != DAY_OF_WEEK:  # follows from the date
            field = {SECONDS: "second", MINUTES: "minute", DAY_OF_MONTH: "day", MONTH: "month"}
            civil = civil._replace(**{field[index]: number})
        days = days_since_epoch(civil.year, civil.month, civil.day)
        seconds = (civil.hour * 60 + civil.minute) * 60 + civil.second
        self._move_clock(float(days * DAY_SECONDS + seconds) + now % 1.0)

    def _move_clock(self, guest_time: float) -> None:
        if self._frozen is None:
            self._offset = guest_time - self._clock()
        else:
            self._frozen = guest_time
        self._latch_until = self._latched
        self._flags_until = guest_time
        self._arm()

    def _change_control(self, a: int, b: int) -> None:
        """Set both control registers; B.SET and a divider held in reset stop the clock."""
        now = self._now()
        was_reset = self._divider_reset
        self._a, self._b = a, b
        self._divider_reset = a & A_DIVIDER_RESET == A_DIVIDER_RESET
        if b & B_SET:
            self._b &= ~B_UIE  # the chip clears it
        if b & B_SET or self._divider_reset:
            self._frozen = now
        elif self._frozen is not None:
            if was_reset:  # the divider starts half-way: the next update comes in 0.5 s
                now = now // 1 + 0.5
            self._offset = now - self._clock()
            self._frozen = None
            self._flags_until = now
        self._update_irq()
        self._arm()

    # Formats

    def _encode(self, number: int) -> int:
        return number if self._b & B_BINARY else number // 10 << 4 | number % 10

    def _decode(self, value: int) -> int:
        return value if self._b & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _encode_hour(self, hour: int) -> int:
        if self._b & B_24H:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._b & B_24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    # Interrupts

    def _read_register_c(self) -> int:
        self._account_flags()
        value, self._c = self._c, 0
        self._update_irq()
        if value & self._b & B_INTERRUPTS:
            self._arm()
        return value

    def _account_flags(self) -> None:
        """Set UF and AF for what has happened since the last look."""
        if self._frozen is not None:
            return
        now = self._now()
        last, self._flags_until = self._flags_until, now
        if now // 1 > last // 1:
            self._c |= C_UF
            if self._alarm_after(last) <= now:
                self._c |= C_AF
            self._update_irq()

    def _alarm_after(self, moment: float) -> float:
        """Return the first whole second past ``moment`` that the alarm registers match."""
        want = [
            None if self._memory[at] >= ALARM_ANY else decode(self._memory[at])
            for at, decode in (
                (HOURS_ALARM, self._decode_hour),
                (MINUTES_ALARM, self._decode),
                (SECONDS_ALARM, self._decode),
            )
        ]
        return float(next_match(int(moment // 1) + 1, *want))

    def _update_irq(self) -> None:
        level = bool(self._c & self._b & B_INTERRUPTS)
        self._c = (self._c & ~C_IRQF) | (C_IRQF if level else 0)
        if level != self._level:
            self._level = level
            self._irq.set_level(level)

    def _arm(self) -> None:
        """Make sure that the enabled, not yet pending interrupts will come.

        A timer that runs already and ends early enough is kept, so that a guest that changes the
        registers again and again does not pile up timers. None is ever cancelled.
        """
        wanted = self._b & ~self._c
        if self._frozen is None and wanted & (B_UIE | B_AIE):
            now = self._now()
            due = now // 1 + 1 if wanted & B_UIE else self._alarm_after(now)
            seconds = min(due - now, MAX_TICK_SECONDS)
            if self._clock() + seconds < self._tick_at:
                self._tick_at = self._clock() + seconds
                self._tick += 1
                tick = self._tick
                self._call_later(seconds, lambda: self._on_tick(tick))
        if wanted & B_PIE and self._a & 0x0F and not self._period_runs:
            self._period_runs = True
            self._call_later(self._period_seconds(), self._on_period)

    def _period_seconds(self) -> float:
        rate = self._a & 0x0F
        if rate < 3:  # the two fastest codes repeat slower ones
            rate += 7
        return max(float(1 << (rate - 1)) / 32768, MIN_PERIOD_SECONDS)

    def _on_tick(self, tick: int) -> None:
        if tick != self._tick:  # a timer that ends earlier has replaced it
            return
        self._tick_at = NEVER
        self._account_flags()
        self._arm()

    def _on_period(self) -> None:
        self._period_runs = False
        if self._b & B_PIE:
            self._c |= C_PF
            self._update_irq()
