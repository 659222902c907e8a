# SPDX-License-Identifier: BSD-3-Clause
"""The clocks of a guest that has a watchdog: for the watchdog, too, no time passes."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from crosvm_py.machine.board import Clocks
    from devices.watchdog import Watchdog


class ClocksAndWatchdog:
    """Stop the clocks and the watchdog of one VM; the vCPUs are paused."""

    def __init__(
        self, clocks: Clocks, watchdog: Watchdog, lock: AbstractContextManager[bool]
    ) -> None:
        self._clocks = clocks
        self._watchdog = watchdog
        self._lock = lock

    def hold(self) -> None:
        """Remember the time of the clocks, and what is left of the watchdog's."""
        self._clocks.hold()
        with self._lock:
            self._watchdog.hold()

    def go_on(self) -> None:
        """Let both go on from there."""
        self._clocks.go_on()
        with self._lock:
            self._watchdog.go_on()
