# SPDX-License-Identifier: BSD-3-Clause
"""The watchdog action table (WDAT): which register of ``devices.watchdog`` does what.

ACPI 6.5 §5.2.6 refers to Microsoft's "Hardware Watchdog Timers Design Specification". Linux has the
driver wdat_wdt, which distributions build, also for clouds.
"""

from __future__ import annotations

from struct import pack

from crosvm_py.machine.x86_64 import layout
from devices import watchdog
from sys_util.typing import Final, NamedTuple

_HEADER_BYTES: Final = 32
# For the segment, too, although it has 16 bits: Linux takes any other value for a PCI function.
_NO_PCI: Final = 0xFF
_ENABLED: Final = 1 << 0
_STOPPED_IN_SLEEP: Final = 1 << 7
_SYSTEM_MEMORY: Final = 0
_DWORD_ACCESS: Final = 3
_ALL: Final = 0xFFFF_FFFF

# Instructions.
_READ_VALUE: Final = 0
_READ_COUNTDOWN: Final = 1
_WRITE_VALUE: Final = 2
_WRITE_COUNTDOWN: Final = 3


class _Entry(NamedTuple):
    """What an action does with a register."""

    action: int
    instruction: int
    offset: int
    value: int
    mask: int


_ENTRIES: Final = (
    _Entry(0x01, _WRITE_VALUE, watchdog.PING, 1, 1),  # reset the countdown
    _Entry(0x04, _READ_COUNTDOWN, watchdog.LEFT, 0, _ALL),  # query the current countdown
    _Entry(0x05, _READ_COUNTDOWN, watchdog.COUNTDOWN, 0, _ALL),  # query the countdown period
    _Entry(0x06, _WRITE_COUNTDOWN, watchdog.COUNTDOWN, 0, _ALL),  # set it
    _Entry(0x08, _READ_VALUE, watchdog.CONTROL, watchdog.RUNNING, watchdog.RUNNING),  # running?
    _Entry(0x09, _WRITE_VALUE, watchdog.CONTROL, watchdog.RUNNING, watchdog.RUNNING),  # start
    _Entry(0x0A, _READ_VALUE, watchdog.CONTROL, 0, watchdog.RUNNING),  # stopped?
    _Entry(0x0B, _WRITE_VALUE, watchdog.CONTROL, 0, watchdog.RUNNING),  # stop
    _Entry(0x20, _READ_VALUE, watchdog.STATUS, watchdog.EXPIRED, watchdog.EXPIRED),  # status
    _Entry(0x21, _WRITE_VALUE, watchdog.STATUS, 0, watchdog.EXPIRED),  # clear it
)


def wdat_body() -> bytes:
    """Return the table without the common header."""
    header = pack(
        "<IHBBB3xIIIB3xI",
        _HEADER_BYTES,
        *(_NO_PCI, _NO_PCI, _NO_PCI, _NO_PCI),
        *(watchdog.PERIOD_MS, watchdog.MAX_COUNT, watchdog.MIN_COUNT),
        _ENABLED | _STOPPED_IN_SLEEP,
        len(_ENTRIES),
    )
    return header + b"".join(map(_packed, _ENTRIES))


def _packed(entry: _Entry) -> bytes:
    register = pack(
        "<BBBBQ", _SYSTEM_MEMORY, 32, 0, _DWORD_ACCESS, layout.WATCHDOG_GPA + entry.offset
    )
    return (
        pack("<BBxx", entry.action, entry.instruction)
        + register
        + pack("<II", entry.value, entry.mask)
    )
