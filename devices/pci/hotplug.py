# SPDX-License-Identifier: BSD-3-Clause
"""The PCI hot-plug controller: which slots have a new device, and which the guest is to eject.

Four registers of 32 bits. The first three have a bit for each slot of the segment that the fourth
one selects, and there is segment 0 only:

- 0, up: devices that were plugged in since the register was read last; reading clears it;
- 4, down: devices that the guest is asked to eject; reading clears it;
- 8, eject: the guest writes a bit when it has let a device go;
- 12, the segment.

They are those of Cloud Hypervisor, and AML uses them: no driver of the guest knows them.
"""

from __future__ import annotations

from devices.bus import all_ones
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HOTPLUG_BYTES: Final = 16

_REGISTER_BYTES: Final = 4
_SLOTS: Final = 32


class PciHotplugController:
    """The registers. Every call needs the device-model lock."""

    def __init__(self, on_eject: Callable[[int], None]) -> None:
        """``on_eject`` is called with a slot that the guest has let go, whatever is in it."""
        self._on_eject = on_eject
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts; a guest that boots finds all devices."""
        self._up = 0
        self._down = 0
        self._segment = 0

    def plugged(self, slot: int) -> None:
        """Show the guest a new device."""
        self._up |= 1 << slot
        self._down &= ~(1 << slot)

    def ask_to_eject(self, slot: int) -> None:
        """Ask the guest to let a device go; one that it has not seen yet it need not look at."""
        self._down |= 1 << slot

    def emptied(self, slot: int) -> None:
        """Forget what the guest was to be told of a slot."""
        self._up &= ~(1 << slot)
        self._down &= ~(1 << slot)

    def read(self, offset: int, size: int) -> int:
        if size != _REGISTER_BYTES or offset % _REGISTER_BYTES:
            return all_ones(size)
        register = offset // _REGISTER_BYTES
        if register == 3:
            return self._segment
        if self._segment:
            return 0
        value = 0
        if register == 0:
            value, self._up = self._up, 0
        elif register == 1:
            value, self._down = self._down, 0
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if size != _REGISTER_BYTES:
            return
        if offset == 3 * _REGISTER_BYTES:
            self._segment = value
        elif offset == 2 * _REGISTER_BYTES and not self._segment:
            for slot in range(_SLOTS):
                if value >> slot & 1:
                    self._on_eject(slot)
