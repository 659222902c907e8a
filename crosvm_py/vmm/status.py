# SPDX-License-Identifier: BSD-3-Clause
"""What the vmm knows of a device's state without asking it: for ``crosvm devices``."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.virtio.backend import QueueActivation


class DeviceStatus:
    """The state of one device, as the vmm sees it."""

    def __init__(self) -> None:
        self.ready = False
        self.served = False  # a process was ready at least once
        self.dead = False  # given up: there will be no further process
        self.paused = False
        self.needs_reset = False
        self.restarts = 0
        self._queues: dict[int, int] = {}  # index to size of each enabled queue

    def activated(self, queues: Iterable[QueueActivation]) -> None:
        """Note that the driver has set DRIVER_OK, with these queues enabled."""
        self._queues = {queue.index: queue.size for queue in queues}

    def queue_enabled(self, queue: QueueActivation) -> None:
        """Note that the driver has enabled one more queue."""
        self._queues[queue.index] = queue.size

    def queue_stopped(self, index: int) -> None:
        """Note that the driver has reset one queue."""
        self._queues.pop(index, None)

    def reset(self) -> None:
        """Note that the driver has reset the device."""
        self._queues = {}
        self.needs_reset = False

    def queues(self, max_sizes: Iterable[int]) -> tuple[tuple[int, bool], ...]:
        """Return of each queue its size (the maximum unless enabled) and whether it is enabled."""
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
