# SPDX-License-Identifier: BSD-3-Clause
"""Tell the vmm of changes to the configuration; the driver reads the vmm's copy of it.

A command of the driver can change the configuration, and the driver may read the change as soon as
the command is used (the address after VIRTIO_NET_CTRL_MAC_ADDR_SET: virtio 1.3 §5.1.6.5.2.1). So
after a change every queue stops, and no further request is shown as used, until the vmm has
confirmed that it has the change. The vmm's own requests are answered only then, too.
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

# The vmm's loop answers at once. If it is later than this, the queues go on, and the driver may
# read an old configuration; that is better than a device that stops.
MOST_WAIT_SECONDS: Final = 0.25

_MOST_NUMBER: Final = 0xFFFF_FFFF


class Configuration:
    """Tell the vmm of changes, and hold back used requests until it has confirmed them."""

    def __init__(
        self,
        device: VirtioDevice,
        worker: QueueWorker,
        loop: EventLoop,
        say: Callable[[Message], None],
        serve_again: Callable[[], None],
    ) -> None:
        """``say`` sends a message to the vmm; ``serve_again`` gives every queue a turn."""
        self._device = device
        self._worker = worker
        self._loop = loop
        self._say = say
        self._serve_again = serve_again
        self._ready = False
        self._number = 0  # of the last change
        self._timer: Timer | None = None  # set until the vmm has confirmed the last change
        self._waiting: list[Callable[[], None]] = []

    def ready(self) -> protocol.Ready:
        """Return the first message to the vmm; it contains the present configuration."""
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
        """Tell the vmm that the configuration of the device has changed."""
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
        """Call ``change``, which the driver asked for, so it gets no interrupt for the change."""
        before = self._device.config()
        change()
        if self._device.config() != before:
            self.changed(by_driver=True)

    def taken(self, number: int) -> None:
        """Note that the vmm has confirmed change ``number``, and so all before it."""
        if number == self._number and self._timer is not None:
            self._timer.cancel()
            self._go_on()

    def when_known(self, then: Callable[[], None]) -> None:
        """Call ``then`` once the vmm has confirmed the last change; calls keep their order."""
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
