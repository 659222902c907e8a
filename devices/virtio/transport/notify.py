# SPDX-License-Identifier: BSD-3-Clause
"""The notify region: how a driver kicks its queues (virtio 1.3 §4.1.4.4, §4.1.5.2).

Each queue has an eventfd that its device polls. Where the region is decoded, KVM signals it
without leaving the kernel (an ioeventfd at the queue's own address). A kick that reaches this
process all the same, for example through the configuration window, is passed on by ``write``.

With bus mastering off the device must not start work: kicks are held back until the guest turns bus
mastering on again.
"""

from __future__ import annotations

import os

from devices.bus import all_ones
from sys_util.errors import HostError
from sys_util.eventfd import create_eventfd, drain_eventfd, is_signalled, signal_eventfd
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

NOTIFY_OFF_MULTIPLIER: Final = 4

_log = get_logger("devices.virtio.notify").limited()


class IoEventFds(Protocol):
    """KVM's ioeventfds in guest-physical memory, for writes of any size and value.

    Both methods raise ``HostError`` where KVM refuses.
    """

    def register(self, address: int, eventfd: int) -> None:
        """Signal ``eventfd`` on every write to ``address`` instead of exiting (KVM_IOEVENTFD)."""
        ...

    def unregister(self, address: int, eventfd: int) -> None:
        """Undo ``register``."""
        ...


class KickState(NamedTuple):
    """The kicks of one queue.

    ``kicked``: there is one that the device has not seen. ``held``: one is held back. ``direct``:
    KVM signals the eventfd itself.
    """

    kicked: bool
    held: bool
    direct: bool


class NotifyRegion:
    """The kick eventfds of a device, and the bus device for writes that KVM did not take."""

    def __init__(self, queue_count: int, region_offset: int, ioeventfds: IoEventFds) -> None:
        self.kick_fds = tuple(create_eventfd() for _ in range(queue_count))
        self._region_offset = region_offset
        self._ioeventfds = ioeventfds
        self._bar_address: int | None = None
        self._bus_master = False
        self._started: set[int] = set()
        self._held: set[int] = set()
        self._registered: dict[int, int] = {}

    def start(self, queues: Iterable[int]) -> None:
        """Accept kicks for ``queues``."""
        self._started.update(queues)
        self._sync()

    def stop(self, queues: Iterable[int]) -> None:
        """Ignore kicks for ``queues`` from now on."""
        self._started.difference_update(queues)
        self._held &= self._started
        self._sync()

    def clear(self) -> None:
        """Forget every kick that no device has seen; no queue may be started."""
        for fd in self.kick_fds:
            drain_eventfd(fd)

    def bar_moved(self, address: int | None) -> None:
        """Follow the BAR."""
        self._bar_address = address
        self._sync()

    def set_bus_master(self, *, enabled: bool) -> None:
        """Pass kicks on, those that were held back first; or hold them back from now on."""
        self._bus_master = enabled
        self._sync()
        if enabled:
            held, self._held = self._held, set()
            for queue in held:
                signal_eventfd(self.kick_fds[queue])

    @property
    def bus_master(self) -> bool:
        """Whether kicks are passed on."""
        return self._bus_master

    def state(self, queue: int) -> KickState:
        """Return the state of a queue's kicks, without consuming any."""
        return KickState(
            is_signalled(self.kick_fds[queue]), queue in self._held, queue in self._registered
        )

    def read(self, offset: int, size: int) -> int:
        return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        queue, rest = divmod(offset, NOTIFY_OFF_MULTIPLIER)
        if rest or queue not in self._started:
            return
        if self._bus_master:
            signal_eventfd(self.kick_fds[queue])
        else:
            self._held.add(queue)

    def close(self) -> None:
        """Unregister and close everything."""
        self.stop(tuple(self._started))
        for fd in self.kick_fds:
            os.close(fd)
        self.kick_fds = ()

    def _sync(self) -> None:
        """Register an ioeventfd for each started queue, where it can work; remove all others."""
        wanted: dict[int, int] = {}
        if self._bar_address is not None and self._bus_master:
            base = self._bar_address + self._region_offset
            wanted = {queue: base + NOTIFY_OFF_MULTIPLIER * queue for queue in self._started}
        for queue, address in tuple(self._registered.items()):
            if wanted.get(queue) != address:
                self._unregister(queue, address)
        for queue, address in wanted.items():
            if queue not in self._registered:
                self._register(queue, address)

    def _register(self, queue: int, address: int) -> None:
        try:
            self._ioeventfds.register(address, self.kick_fds[queue])
        except HostError as error:  # kicks then take the long way, through write()
            _log.warning("queue %d: %s", queue, error)
        else:
            self._registered[queue] = address

    def _unregister(self, queue: int, address: int) -> None:
        del self._registered[queue]
        try:
            self._ioeventfds.unregister(address, self.kick_fds[queue])
        except HostError as error:
            _log.warning("queue %d: %s", queue, error)
