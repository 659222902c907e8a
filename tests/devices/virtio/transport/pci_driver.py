# SPDX-License-Identifier: BSD-3-Clause
"""The driver's side of virtio-pci: a machine with one transport, driven through its buses."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from devices.bus import Bus
from devices.pci.bar import BarWindow
from devices.pci.root import ConfigPorts, Ecam, PciRoot
from devices.virtio.transport.pci_transport import PciServices, VirtioPciTransport
from tests.devices.fakes import (
    WINDOW_BASE,
    WINDOW_END,
    FakeBackend,
    FakeIoEventFds,
    FakeLine,
    FakeRoutes,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from devices.virtio.backend import VirtioBackend

ECAM_BASE: Final = 0xF400_0000
SLOT_BASE: Final = ECAM_BASE + (1 << 15)

VERSION_1: Final = 1 << 32
RING_RESET: Final = 1 << 40
BLK_F_FLUSH: Final = 1 << 9

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
NO_VECTOR: Final = 0xFFFF

COMMAND: Final = 0x04
MEMORY, MASTER, INTX_DISABLE = 2, 4, 0x400

# Offsets of the common configuration, from the specification.
STATUS, GENERATION, QUEUE_SELECT, QUEUE_SIZE = 0x14, 0x15, 0x16, 0x18
QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF, QUEUE_RESET = 0x1A, 0x1C, 0x1E, 0x3A
DESC, AVAIL, USED = 0x20, 0x28, 0x30

CONFIG: Final = bytes(range(60))


class Machine:
    """One virtio-pci device in slot 1, with the driver's ways to reach it."""

    def __init__(
        self,
        backend: VirtioBackend | None = None,
        lock: AbstractContextManager[bool] | None = None,
    ) -> None:
        """Plug in ``backend``, or one that only remembers; ``lock`` is the device-model lock."""
        self.backend = FakeBackend(VERSION_1 | RING_RESET | BLK_F_FLUSH, config=CONFIG)
        if isinstance(backend, FakeBackend):
            self.backend = backend
        self.line = FakeLine()
        self.routes = FakeRoutes()
        self.ioeventfds = FakeIoEventFds()
        lock = lock or threading.RLock()
        self.mmio = Bus("mmio", lock)
        self.pio = Bus("pio", lock)
        self.resets = 0
        window = BarWindow(self.mmio, WINDOW_BASE, WINDOW_END)
        self.services = PciServices(window, self.routes, self.ioeventfds)
        self.transport = VirtioPciTransport(backend or self.backend, self.services, self.line, 11)
        self.root = root = PciRoot()
        root.add(1, self.transport)
        self.mmio.insert(ECAM_BASE, 64 << 20, Ecam(root))
        self.pio.insert(0xCF8, 8, ConfigPorts(root, self._on_reset))
        self.capabilities = self._read_capabilities()

    def _on_reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.transport.close()
        assert self.routes.attached == {}
        assert self.routes.allocated == set()
        assert self.ioeventfds.registered == {}
        assert [entry.base for entry in self.mmio.ranges] == [ECAM_BASE]

    # Configuration space.

    def config_read(self, offset: int, size: int) -> int:
        return self.mmio.read(SLOT_BASE + offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(SLOT_BASE + offset, size, value)

    def _read_capabilities(self) -> dict[int, int]:
        """Return the vendor capabilities by cfg_type; MSI-X as type 0x11."""
        found = {}
        at = self.config_read(0x34, 1)
        while at:
            cap_id = self.config_read(at, 1)
            found[self.config_read(at + 3, 1) if cap_id == 9 else cap_id] = at
            at = self.config_read(at + 1, 1)
        return found

    def command(self, value: int) -> None:
        self.config_write(COMMAND, 2, value)

    def region(self, cfg_type: int) -> int:
        """Return the guest-physical address of a structure."""
        at = self.capabilities[cfg_type]
        return (self.config_read(0x10, 4) & ~0xF) + self.config_read(at + 8, 4)

    def enable_msix(self, *vectors: int) -> None:
        """Enable MSI-X and program and unmask ``vectors``."""
        at = self.capabilities[0x11]
        self.config_write(at + 2, 2, 0x8000)
        table = (self.config_read(0x10, 4) & ~0xF) + self.config_read(at + 4, 4)
        for vector in vectors:
            for register, value in enumerate((0xFEE0_0000, 0, 0x40 + vector, 0)):
                self.mmio.write(table + 16 * vector + 4 * register, 4, value)

    # Common configuration.

    def read(self, offset: int, size: int) -> int:
        return self.mmio.read(self.region(1) + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(self.region(1) + offset, size, value)

    @property
    def status(self) -> int:
        return self.read(STATUS, 1)

    def add_status(self, bits: int) -> None:
        self.write(STATUS, 1, self.status | bits)

    def offered(self) -> int:
        value = 0
        for word in (0, 1):
            self.write(0x00, 4, word)
            value |= self.read(0x04, 4) << 32 * word
        return value

    def acknowledge_features(self, features: int) -> None:
        for word in (0, 1):
            self.write(0x08, 4, word)
            self.write(0x0C, 4, features >> 32 * word & 0xFFFF_FFFF)

    def negotiate(self, features: int = VERSION_1 | RING_RESET) -> None:
        """Go as far as FEATURES_OK, as Linux does."""
        self.write(STATUS, 1, 0)
        self.add_status(ACKNOWLEDGE)
        self.add_status(DRIVER)
        self.acknowledge_features(features)
        self.add_status(FEATURES_OK)

    def set_up_queue(self, index: int, *, size: int = 16, vector: int = NO_VECTOR) -> None:
        self.write(QUEUE_SELECT, 2, index)
        self.write(QUEUE_SIZE, 2, size)
        for offset, address in ((DESC, 0x10000), (AVAIL, 0x20000), (USED, 0x30000)):
            self.write(offset, 4, address + 0x1000 * index)
            self.write(offset + 4, 4, 1)
        self.write(QUEUE_VECTOR, 2, vector)
        self.write(QUEUE_ENABLE, 2, 1)

    def start(self, *, features: int = VERSION_1 | RING_RESET, msix: bool = True) -> None:
        """Bring the device to DRIVER_OK with both queues enabled."""
        self.command(MEMORY | MASTER)
        if msix:
            self.enable_msix(0, 1, 2)
        self.negotiate(features)
        if msix:
            self.write(0x10, 2, 0)
        for index in range(2):
            self.set_up_queue(index, vector=index + 1 if msix else NO_VECTOR)
        self.add_status(DRIVER_OK)

    def notify(self, index: int) -> None:
        """Kick a queue as KVM does: an ioeventfd if there is one, else the bus."""
        address = self.region(2) + 4 * index
        eventfd = self.ioeventfds.registered.get(address)
        if eventfd is None:
            self.mmio.write(address, 2, index)
        else:
            import os

            os.eventfd_write(eventfd, 1)
