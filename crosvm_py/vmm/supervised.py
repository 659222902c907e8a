# SPDX-License-Identifier: BSD-3-Clause
"""What the supervisor keeps of one device, beside its ``DeviceProcess``."""

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

# Called with "" when a new process serves the device, or with the reason why none does.
RestartResult: TypeAlias = "Callable[[str], None]"


class SupervisedDevice:
    """One device under supervision: its restarts and its shared page."""

    def __init__(self, device: DeviceProcess, page: SharedPage, restarts: RestartLimit) -> None:
        self.device = device
        # The device can make its process end again and again, so these messages are limited.
        self.log = log.limited(_LINES, _LINES_SECONDS)
        self.page = page  # its counters and its saved state
        self.budget = RestartBudget(restarts)
        self.owns_page = True
        self.resizable = False
        self.is_removed = False  # it gets no further process; the warden has to forget it yet
        self.on_forgotten: Callable[[], None] = lambda: None
        # Set while the first process of a device starts that was added to a running VM.
        self.on_first: Callable[[str], None] | None = None
        self.is_ready = False  # the latest process has sent ``Ready``
        self.failed_starts = 0  # how many processes in a row ended before they were ready
        self.timer: Timer | None = None  # fires if the new process is not ready in time
        self.ended_at = 0.0  # when the end of the latest process was noticed
        self.on_restarted: RestartResult | None = None  # set while a requested restart runs
        self.is_renewing = False  # the warden has not answered ``Renew``; it takes no second one
        self.on_purpose = False  # the process is being ended for a requested restart

    def ready(self, now: float) -> None:
        """Note that a process serves the device since ``now`` (``time.monotonic``)."""
        self.is_ready, self.failed_starts = True, 0
        self.budget.ready(now)
        self.stop_waiting()

    def check_state(self) -> None:
        """Clear the saved state if it may be why the process that has ended did not start.

        If another process killed it, the saved state is probably not the reason, so the first such
        end is forgiven; after two failed starts in a row the state is cleared in any case.
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
        """Cancel the timer: the process is ready, or has ended."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def answer_restart(self, reason: str) -> None:
        """Tell whoever asked for a restart that it is done, or why not. Call it any time."""
        on_restarted, self.on_restarted = self.on_restarted, None
        if on_restarted is not None:
            on_restarted(reason)

    def answer_first(self, reason: str) -> bool:
        """Tell whoever added the device that it is ready, or why not; return whether one waits."""
        on_first, self.on_first = self.on_first, None
        if on_first is None:
            return False
        on_first(reason)
        return True
