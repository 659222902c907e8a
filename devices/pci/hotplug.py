# SPDX-License-Identifier: BSD-3-Clause
"""The PCI hot-plug controller: which slots have a new device, and which the guest is to eject.

Four registers of 32 bits. The first three have a bit for each slot of the segment that the fourth
one selects:

- 0, up: devices that were plugged in since the register was read last; reading clears it;
- 4, down: devices that the guest is asked to eject; reading clears it;
- 8, eject: the guest writes a bit when it has let a device go;
- 12, the segment; of one that does not exist the other registers are 0.

They are those of Cloud Hypervisor, and AML uses them: no driver of the guest knows them.
"""

from __future__ import annotations

from devices.bus import all_ones
from devices.pci.address import SEGMENT_SLOTS, slot_number
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HOTPLUG_BYTES: Final = 16

_REGISTER_BYTES: Final = 4


class PciHotplugController:
    """The registers. Slots have the numbers of ``address``. Call it with the device-model lock."""

    def __init__(self, on_eject: Callable[[int], None], segments: int = 1) -> None:
        """``on_eject`` is called with a slot that the guest has let go, whatever is in it."""
        self._on_eject = on_eject
        self._count = segments
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts; a guest that boots finds all devices."""
        self._up = [0] * self._count
        self._down = [0] * self._count
        self._segment = 0

    def plugged(self, slot: int) -> None:
        """Show the guest a new device."""
        segment, at = divmod(slot, SEGMENT_SLOTS)
        self._up[segment] |= 1 << at
        self._down[segment] &= ~(1 << at)

    def ask_to_eject(self, slot: int) -> None:
        """Ask the guest to let a device go; one that it has not seen yet it need not look at."""
        segment, at = divmod(slot, SEGMENT_SLOTS)
        self._down[segment] |= 1 << at

    def emptied(self, slot: int) -> None:
        """Forget what the guest was to be told of a slot."""
        segment, at = divmod(slot, SEGMENT_SLOTS)
        self._up[segment] &= ~(1 << at)
        self._down[segment] &= ~(1 << at)

    def read(self, offset: int, size: int) -> int:
        if size != _REGISTER_BYTES or offset % _REGISTER_BYTES:
            return all_ones(size)
        register = offset // _REGISTER_BYTES
        if register == 3:
            return self._segment
        told = (self._up, self._down)
        if register >= len(told) or self._segment >= len(self._up):
            return 0
        value, told[register][self._segment] = told[register][self._segment], 0
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if size != _REGISTER_BYTES:
            return
        if offset == 3 * _REGISTER_BYTES:
            self._segment = value
        elif offset == 2 * _REGISTER_BYTES and self._segment < len(self._up):
            for slot in range(SEGMENT_SLOTS):
                if value >> slot & 1:
                    self._on_eject(slot_number(self._segment, slot))
