# SPDX-License-Identifier: BSD-3-Clause
"""Numbers for all PCI slots of a machine, and their addresses for people.

Each segment has 32 slots. Slot 5 of segment 2 has the number 2 * 32 + 5.
"""

from __future__ import annotations

from sys_util.typing import Final

SEGMENT_SLOTS: Final = 32

# The most devices of a VM at a time, whatever the number of slots, those included that are about to
# go.
MAX_DEVICES: Final = 64


def slot_number(segment: int, slot: int) -> int:
    """Return the number of a slot of a segment."""
    return segment * SEGMENT_SLOTS + slot


def pci_address(number: int) -> str:
    """Return segment, bus, device and function of a slot, as in 0002:00:05.0."""
    segment, slot = divmod(number, SEGMENT_SLOTS)
    return f"{segment:04x}:00:{slot:02x}.0"
