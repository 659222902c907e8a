# SPDX-License-Identifier: BSD-3-Clause
"""One device in the supervisor's care, beyond what ``DeviceProcess`` knows of itself."""

from __future__ import annotations

from crosvm_py.vmm.restart import RestartBudget
from devices.virtio.saved_state import SavedState
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.care import RestartLimit
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from sys_util.event_loop import Timer
    from sys_util.shared_page import SharedPage

log = get_logger("crosvm.devices")

_LINES: Final = 40
_LINES_SECONDS: Final = 60.0

# What is called when a new process serves, with nothing, or with a reason why none does yet.
RestartResult: TypeAlias = "Callable[[str], None]"


class Charge:
    """What the supervisor has to remember of a device. Owns its page."""

    def __init__(self, device: DeviceProcess, page: SharedPage, restarts: RestartLimit) -> None:
        self.device = device
        # For what the device can cause, over and over: its ends, and what comes of them.
        self.log = log.limited(_LINES, _LINES_SECONDS)
        self.page = page  # its counters and its saved state
        self.budget = RestartBudget(restarts)
        self.resizable = False
        self.is_ready = False  # the present process, or the last one, got so far
        self.failed_starts = 0  # of processes in a row that did not
        self.timer: Timer | None = None  # until its process has to be ready
        self.ended_at = 0.0  # when the end of the last process was noticed
        self.wish: RestartResult | None = None  # of whom asked for a restart
        self.on_purpose = False  # ended, or about to be, because of that

    def ready(self, now: float) -> None:
        """A process serves the device since ``now``."""
        self.is_ready, self.failed_starts = True, 0
        self.budget.ready(now)
        self.stop_waiting()

    def check_state(self) -> None:
        """A process has ended. If what the one before it left may be why, nobody finds it again.

        A process that somebody killed before it was ready may be innocent, and so may be what it
        was to go on with; two in a row are not believed to be.
        """
        if self.is_ready or not self.device.status.served:
            return
        self.failed_starts += 1
        saved = SavedState(self.page.cells)
        if not saved.is_empty and (self.failed_starts > 1 or not self.device.death.by_others):
            self.log.warning(
                "%s: no process starts with its saved state: cleared", self.device.name
            )
            saved.clear()

    def stop_waiting(self) -> None:
        """The process is ready, or has ended."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def fulfil(self, reason: str) -> None:
        """Tell whom asked for a restart that it is done, or why not."""
        wish, self.wish = self.wish, None
        if wish is not None:
            wish(reason)
