# SPDX-License-Identifier: BSD-3-Clause
"""pvpanic on the ISA bus: the guest tells that its kernel panicked (QEMU docs/specs/pvpanic).

A read returns the events that the host understands, a write reports some of them.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PVPANIC_PORT: Final = 0x505
PVPANIC_LENGTH: Final = 1

PVPANIC_PANICKED: Final = 0x01
PVPANIC_CRASH_LOADED: Final = 0x02  # a crash kernel takes over and writes a dump
PVPANIC_EVENTS: Final = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED


class PvPanic:
    """Tell the machine about a panic, or about one that a crash kernel of the guest handles."""

    def __init__(
        self, on_panic: Callable[[], None], on_crash_loaded: Callable[[], None] | None = None
    ) -> None:
        self._on_panic = on_panic
        self._on_crash_loaded = on_crash_loaded

    def read(self, offset: int, size: int) -> int:
        return PVPANIC_EVENTS

    def write(self, offset: int, size: int, value: int) -> None:
        if value & PVPANIC_PANICKED:
            self._on_panic()
        elif value & PVPANIC_CRASH_LOADED and self._on_crash_loaded is not None:
            self._on_crash_loaded()
