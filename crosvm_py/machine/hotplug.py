# SPDX-License-Identifier: BSD-3-Clause
"""How a guest is told of devices that come and go, on machines where they can."""

from __future__ import annotations

from devices.ged import GED_MEMORY, GED_PCI
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import RLock

    from devices.ged import EventDevice
    from devices.memory_hotplug import Dimm, MemoryHotplugController
    from devices.pci.hotplug import PciHotplugController


class HotPlug:
    """The guest's ears. Every method takes the device-model lock; none waits for the guest.

    ``events`` tells of other things, too.
    """

    def __init__(self, lock: RLock, controller: PciHotplugController, events: EventDevice) -> None:
        self._lock = lock
        self._controller = controller
        self.events = events

    def plugged(self, slot: int) -> None:
        """Tell the guest of a new device."""
        with self._lock:
            self._controller.plugged(slot)
            self.events.tell(GED_PCI)

    def memory_plugged(self, dimm: Dimm, controller: MemoryHotplugController) -> None:
        """Tell the guest of a new memory module, which all processes know."""
        with self._lock:
            controller.plugged(dimm)
            self.events.tell(GED_MEMORY)

    def ask_to_eject(self, slot: int) -> None:
        """Ask the guest to let a device go. It may never do so."""
        with self._lock:
            self._controller.ask_to_eject(slot)
            self.events.tell(GED_PCI)

    def emptied(self, slot: int) -> None:
        """Forget what the guest was to be told of a slot."""
        with self._lock:
            self._controller.emptied(slot)
