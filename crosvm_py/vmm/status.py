# SPDX-License-Identifier: BSD-3-Clause
"""What the vmm knows of a device's state without asking it: for ``crosvm devices``."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.virtio.backend import QueueActivation


class DeviceStatus:
    """The life of one device as far as it passes the vmm."""

    def __init__(self) -> None:
        self.ready = False
        self.served = False  # ready at least once
        self.dead = False  # for good
        self.paused = False
        self.needs_reset = False
        self.restarts = 0
        self._queues: dict[int, int] = {}  # index -> size of those that are enabled

    def activated(self, queues: Iterable[QueueActivation]) -> None:
        """The driver is ready."""
        self._queues = {queue.index: queue.size for queue in queues}

    def queue_enabled(self, queue: QueueActivation) -> None:
        """One more queue is served."""
        self._queues[queue.index] = queue.size

    def queue_stopped(self, index: int) -> None:
        """One queue is served no more."""
        self._queues.pop(index, None)

    def reset(self) -> None:
        """The driver has gone."""
        self._queues = {}
        self.needs_reset = False

    def queues(self, max_sizes: Iterable[int]) -> tuple[tuple[int, bool], ...]:
        """Return size and whether it is enabled of each queue; the greatest size if it is not."""
        enabled = self._queues
        return tuple(
            (enabled.get(index, size), index in enabled) for index, size in enumerate(max_sizes)
        )

    @property
    def word(self) -> str:
        """The state in one word."""
        if self.dead:
            return "dead"
        if not self.ready:
            return "restarting" if self.served else "starting"
        if self.paused:
            return "paused"
        if self.needs_reset:
            return "needs-reset"
        return "active" if self._queues else "idle"
