# SPDX-License-Identifier: BSD-3-Clause
"""What a device with events of its own gets from its process: queues, descriptors, timers."""

from __future__ import annotations

from sys_util.event_loop import EPOLLIN
from sys_util.typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.counters import Counters
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.saved_state import SavedState
    from sys_util.event_loop import Timer
    from sys_util.guest_memory import GuestMemory


class DeviceContext(Protocol):
    """What a device may use of its process. Every callback runs in the one thread of that process.

    A callback may raise ``QueueError`` (``take`` and ``wait`` do): the device then needs a reset.
    While the device is paused, or waits for a reset, descriptors and timers are held: no callback
    comes, and those that became due meanwhile come afterwards.
    """

    @property
    def memory(self) -> GuestMemory:
        """The memory of the guest."""
        ...

    @property
    def counters(self) -> Counters:
        """The device's counters; ``add`` counts what only its kind has."""
        ...

    @property
    def saved(self) -> SavedState:
        """What the device remembers when its process ends; restore it in ``attach``."""
        ...

    def port(self, index: int) -> QueuePort | None:
        """Return a queue that the device serves itself, ``None`` while it is not active."""
        ...

    def add_fd(self, fd: int, callback: Callable[[int], None], *, events: int = EPOLLIN) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready (level-triggered)."""
        ...

    def modify_fd(self, fd: int, events: int) -> None:
        """Wait for other ``events`` of a descriptor that was added."""
        ...

    def remove_fd(self, fd: int) -> None:
        """Forget ``fd``; call it before the descriptor is closed."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now, unless the timer is cancelled."""
        ...

    def serve_again(self) -> None:
        """Give every active queue a turn soon: nothing holds their chains back any more."""
        ...

    def config_changed(self, *, by_driver: bool = False) -> None:
        """Tell the driver that ``device.config()`` has changed; its length never does.

        ``by_driver``: it asked for the change, so it gets no interrupt.
        """
        ...

    def change_blocks(
        self, kind: int, first: int, count: int, then: Callable[[bool], None]
    ) -> None:
        """Ask the vmm to give the guest blocks of memory, or to take them, by ``VIRTIO_MEM_REQ_…``.

        ``then`` is called with whether it did, unless another request follows before.
        """
        ...
