# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a device, of which the vmm has the copy that the driver reads.

A driver whose command changes the configuration may read it as soon as the command is used (the
address after VIRTIO_NET_CTRL_MAC_ADDR_SET: virtio 1.3 §5.1.6.5.2.1). So every queue rests, and
shows nothing more as used, until the vmm has said that it knows the latest change. Then its
requests are answered.
"""

from __future__ import annotations

from crosvm_py.device_process import protocol
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue.worker import QueueWorker
    from sys_util.event_loop import EventLoop, Timer
    from sys_util.wire import Message

# The vmm's loop answers at once. One that is that late costs a driver the promise, not its device.
MOST_WAIT_SECONDS: Final = 0.25

_MOST_NUMBER: Final = 0xFFFF_FFFF


class Configuration:
    """Tell the vmm of changes, and hold back what must not be seen before it knows them."""

    def __init__(
        self,
        device: VirtioDevice,
        worker: QueueWorker,
        loop: EventLoop,
        say: Callable[[Message], None],
        serve_again: Callable[[], None],
    ) -> None:
        """``serve_again`` gives every queue a turn."""
        self._device = device
        self._worker = worker
        self._loop = loop
        self._say = say
        self._serve_again = serve_again
        self._ready = False
        self._number = 0  # of the last change
        self._timer: Timer | None = None  # while the vmm may not know it
        self._waiting: list[Callable[[], None]] = []

    def ready(self) -> protocol.Ready:
        """Return the first message, which tells the configuration as it is now."""
        self._ready = True
        device = self._device
        features = self._worker.offered_features
        return protocol.Ready(
            device.device_type,
            features,
            device.queue_sizes,
            device.config(),
            device.early_writes,
        )

    def changed(self, *, by_driver: bool = False) -> None:
        """The device has another configuration now."""
        if not self._ready:
            return
        self._number = self._number % _MOST_NUMBER + 1
        self._worker.withhold_used()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(MOST_WAIT_SECONDS, self._go_on)
        config = self._device.config()
        self._say(protocol.ConfigChanged(config, by_driver, self._number))

    def change(self, change: Callable[[], None]) -> None:
        """Make a change that is the driver's own doing, so that it is not told of it."""
        before = self._device.config()
        change()
        if self._device.config() != before:
            self.changed(by_driver=True)

    def taken(self, number: int) -> None:
        """The vmm knows change ``number``, and those before it."""
        if number == self._number and self._timer is not None:
            self._timer.cancel()
            self._go_on()

    def when_known(self, then: Callable[[], None]) -> None:
        """Call ``then`` when the vmm knows the last change, in the order of these calls."""
        if self._timer is None:
            then()
        else:
            self._waiting.append(then)

    def _go_on(self) -> None:
        self._timer = None
        self._worker.show_used()
        self._serve_again()
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()
