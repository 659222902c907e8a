# SPDX-License-Identifier: BSD-3-Clause
"""Stand-ins for KVM and for a device process, which record what the transport asks of them."""

from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING

from devices.bus import Bus
from devices.pci.bar import BarWindow
from sys_util.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.backend import QueueActivation

WINDOW_BASE = 0xD000_0000
WINDOW_END = 0xF400_0000


def readable(fd: int) -> bool:
    """Return whether an eventfd is signalled, without reading it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def make_window() -> tuple[Bus, BarWindow]:
    bus = Bus("mmio", threading.RLock())
    return bus, BarWindow(bus, WINDOW_BASE, WINDOW_END)


class FakeLine:
    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def set_level(self, asserted: bool) -> None:
        self.level = asserted
        self.changes.append(asserted)


class FakeRoutes:
    """KVM's routes and irqfds. An attached eventfd that is signalled delivers its message."""

    def __init__(self) -> None:
        self.next_gsi = 24
        self.messages: dict[int, tuple[int, int, int]] = {}
        self.attached: dict[int, int] = {}
        self.route_updates = 0
        self.refused_address_hi = -1
        self.allocated: set[int] = set()
        self._delivered: list[tuple[int, int, int]] = []

    def allocate(self) -> int:
        self.next_gsi += 1
        self.allocated.add(self.next_gsi)
        return self.next_gsi

    def free(self, gsi: int) -> None:
        assert gsi not in self.attached, "GSI freed while attached"
        self.allocated.remove(gsi)

    def set_msi(self, gsi: int, address_lo: int, address_hi: int, data: int) -> None:
        self.route_updates += 1
        if address_hi == self.refused_address_hi:
            raise HostError("KVM_SET_GSI_ROUTING", f"gsi {gsi}") from OSError(errno.EINVAL, "no")
        self.messages[gsi] = (address_lo, address_hi, data)

    def attach(self, gsi: int, eventfd: int) -> None:
        assert gsi in self.messages, "irqfd without a route"
        assert gsi not in self.attached, "irqfd attached twice"
        self.attached[gsi] = eventfd

    def detach(self, gsi: int, eventfd: int) -> None:
        self._inject(gsi, eventfd)  # KVM did that when it was signalled, and detaching drains
        assert self.attached.pop(gsi) == eventfd

    def deliver(self) -> list[tuple[int, int, int]]:
        """Return the messages that KVM has sent since the last call."""
        for gsi, eventfd in self.attached.items():
            self._inject(gsi, eventfd)
        delivered, self._delivered = self._delivered, []
        return delivered

    def _inject(self, gsi: int, eventfd: int) -> None:
        if readable(eventfd):
            os.eventfd_read(eventfd)
            self._delivered.append(self.messages[gsi])


class FakeIoEventFds:
    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.refuse = False

    def register(self, address: int, eventfd: int) -> None:
        if self.refuse:
            raise HostError("KVM_IOEVENTFD", f"{address:#x}") from OSError(errno.ENOSPC, "full")
        assert address not in self.registered, "ioeventfd registered twice"
        self.registered[address] = eventfd

    def unregister(self, address: int, eventfd: int) -> None:
        assert self.registered.pop(address) == eventfd


class FakeBackend:
    """A device that does nothing but remember; the test plays its answers."""

    name = "fake:0"
    device_type = 2
    early_writes = False

    def __init__(
        self, features: int, queue_sizes: tuple[int, ...] = (256, 64), config: bytes = b""
    ) -> None:
        self.features = features
        self.queue_sizes = queue_sizes
        self.config = config
        self.calls: list[str] = []
        self.activations: list[tuple[int, tuple[QueueActivation, ...]]] = []
        self.enabled: list[QueueActivation] = []
        self.config_writes: list[tuple[int, bytes]] = []

    def activate(self, features: int, queues: Sequence[QueueActivation]) -> None:
        self.calls.append("activate")
        self.activations.append((features, tuple(queues)))

    def reset(self) -> None:
        self.calls.append("reset")

    def enable_queue(self, queue: QueueActivation) -> None:
        self.calls.append(f"enable_queue {queue.index}")
        self.enabled.append(queue)

    def reset_queue(self, index: int) -> None:
        self.calls.append(f"reset_queue {index}")

    def write_config(self, offset: int, data: bytes) -> None:
        self.calls.append("write_config")
        self.config_writes.append((offset, data))
