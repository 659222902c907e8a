# SPDX-License-Identifier: BSD-3-Clause
"""Numbers as people read them, never wider than their column, and texts that cannot do harm."""

from __future__ import annotations

from sys_util.log import printable
from sys_util.typing import Final

_UNITS: Final = "KMGTPE"


def count(number: float, unit: int = 1000) -> str:
    """Return a number in at most five characters: ``999``, ``1.2K``, ``45.1M``."""
    if number < unit:
        return f"{number:.0f}"
    power = 0
    while number >= unit and power < len(_UNITS):
        number /= unit
        power += 1
    digits = 1 if number < 99.95 else 0
    return f"{number:.{digits}f}{_UNITS[power - 1]}"


def size(size_bytes: float) -> str:
    """Return an amount of bytes, in units of 1024."""
    return count(size_bytes, 1024)


def duration(seconds: float) -> str:
    """Return a time as ``0:12:33`` or ``3d 4:05:06``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock


def word(text: str, width: int = 32) -> str:
    """Return a text of a stranger as characters of one column each, and not more than ``width``."""
    shown = "".join(c if c.isascii() else "?" for c in printable(text[:width]))
    return shown if len(shown) <= width else f"{shown[: width - 1]}+"
