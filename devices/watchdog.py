# SPDX-License-Identifier: BSD-3-Clause
"""A watchdog timer with the registers that our ACPI table WDAT describes to the guest.

Registers of 32 bits:

- 0, control: bit 0 says whether the timer runs. Writing a 1 starts it with the full countdown,
  writing a 0 stops it.
- 4, countdown: the periods from a ping to the reset. A value outside the limits becomes the nearest
  limit. A timer that runs takes it with the next ping.
- 8, left: the periods until the reset; 0 while the timer is stopped. Writes are ignored.
- 12, ping: writing a 1 starts the countdown anew, if the timer runs.
- 16, status: bit 0 says that the watchdog has caused the last reset. Writing a 0 clears it.

Anything but a whole register reads as 0, and writing it changes nothing. The actions are those of
Microsoft's "Hardware Watchdog Timers Design Specification"; ``crosvm_py/machine/x86_64/acpi/wdat``
says which register each of them uses.
"""

from __future__ import annotations

import time
from math import ceil

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WATCHDOG_BYTES: Final = 20

CONTROL: Final = 0
COUNTDOWN: Final = 4
LEFT: Final = 8
PING: Final = 12
STATUS: Final = 16
RUNNING: Final = 1 << 0
EXPIRED: Final = 1 << 0

PERIOD_MS: Final = 100
MIN_COUNT: Final = 10
MAX_COUNT: Final = 36_000
DEFAULT_COUNT: Final = 300

_REGISTER_BYTES: Final = 4
_PERIOD_SECONDS: Final = PERIOD_MS / 1000
_TICK_SECONDS: Final = MIN_COUNT * _PERIOD_SECONDS
# If a timer is so late, our process did not run, and the guest in it could not ping. That time does
# not count.
_LATE_SECONDS: Final = 0.5


class Watchdog:
    """The registers and the timer. Every call needs the device-model lock."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        on_expire: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a timer that is stopped.

        ``call_later`` calls back, with the lock, after some seconds. ``on_expire`` is told how many
        seconds the guest had to ping; it must not wait.
        """
        self._call_later = call_later
        self._on_expire = on_expire
        self._clock = clock
        self._expired = False
        self._was_expired = False  # before the last reset
        self._ticking = False
        self._tick_at = 0.0  # when the timer that runs is due
        self.reset()

    def reset(self) -> None:
        """Stop, as at the start of the machine; keep only whether this is our doing."""
        self._running = False
        self._deadline = 0.0
        self._held: float | None = None  # seconds left of a timer that stands still
        self._count = DEFAULT_COUNT
        self._was_expired, self._expired = self._expired, False

    def read(self, offset: int, size: int) -> int:
        if size != _REGISTER_BYTES:
            return 0
        if offset == CONTROL:
            return RUNNING if self._running else 0
        if offset == COUNTDOWN:
            return self._count
        if offset == LEFT:
            return self._left() if self._running else 0
        return EXPIRED if offset == STATUS and self._was_expired else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != _REGISTER_BYTES:
            return
        if offset == CONTROL:
            self._running = bool(value & RUNNING)
            self._ping()
        elif offset == COUNTDOWN:
            self._count = min(max(value, MIN_COUNT), MAX_COUNT)
        elif offset == PING and value & 1:
            self._ping()
        elif offset == STATUS and not value & EXPIRED:
            self._was_expired = False

    def hold(self) -> None:
        """Let no time pass for the timer; the vCPUs are paused."""
        if self._running and self._held is None:
            self._held = max(self._deadline - self._clock(), 0.0)

    def go_on(self) -> None:
        """Go on with the time that was left."""
        if self._held is not None:
            self._deadline, self._held = self._clock() + self._held, None
            self._watch()

    def _left(self) -> int:
        left = self._deadline - self._clock()
        return min(max(ceil(left / _PERIOD_SECONDS), 0), MAX_COUNT)

    def _ping(self) -> None:
        if self._running:
            self._deadline = self._clock() + self._count * _PERIOD_SECONDS
            self._watch()

    def _watch(self) -> None:
        """Make sure that a timer runs, which looks at the deadline.

        It is never longer than the shortest countdown, so none ever has to be replaced, and a guest
        that pings or starts us as fast as it can makes no further ones.
        """
        if not self._ticking:
            self._ticking = True
            now = self._clock()
            self._tick_at = min(self._deadline, now + _TICK_SECONDS)
            self._call_later(max(self._tick_at - now, 0.0), self._on_tick)

    def _on_tick(self) -> None:
        self._ticking = False
        if not self._running or self._held is not None:
            return
        now = self._clock()
        if now - self._tick_at > _LATE_SECONDS:
            self._deadline += now - self._tick_at
        if now < self._deadline:
            self._watch()
            return
        self._running = False
        self._expired = True
        self._on_expire(self._count * _PERIOD_SECONDS)
