# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic behind the CMOS clock: dates, alarms, and the bytes that tell the memory size."""

from __future__ import annotations

from sys_util.typing import Final

DAY_SECONDS: Final = 86400
_MIB: Final = 1 << 20


def days_since_epoch(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the proleptic Gregorian calendar.

    Month and day may be out of range (a guest may store 99 as a month): they carry over.
    """
    year, month0 = divmod(12 * year + month - 1, 12)
    year, shifted = (year, month0 - 2) if month0 >= 2 else (year - 1, month0 + 10)
    day_of_year = (153 * shifted + 2) // 5 + day - 1
    return 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - 719468


def memory_size_bytes(low_bytes: int, high_bytes: int) -> dict[int, int]:
    """Return the CMOS bytes that tell firmware the memory size, by address.

    ``low_bytes`` is RAM below 4 GiB from address 0, ``high_bytes`` RAM from 4 GiB.
    """
    extended_kib = min(max(low_bytes - _MIB, 0) >> 10, 0xFFFF)
    above_16m = min(max(low_bytes - 16 * _MIB, 0) >> 16, 0xFFFF)
    above_4g = min(high_bytes >> 16, 0xFF_FFFF)
    fields = (
        (0x15, 640, 2),
        (0x17, extended_kib, 2),
        (0x30, extended_kib, 2),
        (0x34, above_16m, 2),
        (0x5B, above_4g, 3),
    )
    return {at + i: value >> (8 * i) & 0xFF for at, value, size in fields for i in range(size)}


def next_match(start: int, hour: int | None, minute: int | None, second: int | None) -> int:
    """Return the first second since the epoch, from ``start`` on, with this time of day.

    ``None`` matches every value. For a time of day that does not exist, return a moment more than
    a day after ``start``.
    """
    never = start + 2 * DAY_SECONDS
    if (hour or 0) > 23 or (minute or 0) > 59 or (second or 0) > 59:
        return never
    at = start
    while at < never:  # each step skips an hour, a minute or a second: some 200 steps at most
        if hour is not None and at // 3600 % 24 != hour:
            at = (at // 3600 + 1) * 3600
        elif minute is not None and at // 60 % 60 != minute:
            at = (at // 60 + 1) * 60
        elif second is not None and at % 60 != second:
            at += 1
        else:
            return at
    return never
