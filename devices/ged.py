# SPDX-License-Identifier: BSD-3-Clause
"""The register of the ACPI generic event device (ACPI 6.5 §5.6.9): what an interrupt was for."""

from __future__ import annotations

from devices.bus import all_ones
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.bus import IrqLine

GED_BYTES: Final = 1

# The bits of the register, as Cloud Hypervisor has them.
GED_CPU: Final = 1 << 0
GED_MEMORY: Final = 1 << 1
GED_PCI: Final = 1 << 2


class EventDevice:
    """One byte with a bit for each kind of event since it was read last; reading clears it."""

    def __init__(self, line: IrqLine) -> None:
        """``line`` is edge-triggered."""
        self._line = line
        self._events = 0

    def tell(self, event: int) -> None:
        """Set a bit and interrupt the guest. The caller holds the device-model lock."""
        self._events |= event
        self._line.set_level(True)
        self._line.set_level(False)

    def reset(self) -> None:
        """Forget every event."""
        self._events = 0

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return all_ones(size)
        events, self._events = self._events, 0
        return events

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore it: the register is read-only."""
