# SPDX-License-Identifier: BSD-3-Clause
"""One device in the supervisor's care, beyond what ``DeviceProcess`` knows of itself."""

from __future__ import annotations

from crosvm_py.device_process.restart import RestartBudget
from sys_util.typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.device_process.host import DeviceProcess
    from sys_util.event_loop import Timer
    from sys_util.shared_page import SharedPage

# What is called when a new process serves, with nothing, or with a reason why none does yet.
RestartResult: TypeAlias = "Callable[[str], None]"


class Charge:
    """What the supervisor has to remember of a device. Owns its page."""

    def __init__(self, device: DeviceProcess, page: SharedPage, restarts: int | None) -> None:
        self.device = device
        self.page = page  # its counters and its saved state
        self.budget = RestartBudget(restarts)
        self.resizable = False
        self.timer: Timer | None = None  # until its process has to be ready
        self.ended_at = 0.0  # when the end of the last process was noticed
        self.wish: RestartResult | None = None  # of whom asked for a restart
        self.on_purpose = False  # ended, or about to be, because of that

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
