# SPDX-License-Identifier: BSD-3-Clause
"""Which PCI slots the devices of the start get, as ``devices.pci.address`` numbers them."""

from __future__ import annotations

from devices.pci.address import SEGMENT_SLOTS
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def in_segment(slots: range, segment: int) -> range:
    """Return those of a machine's slots that one segment has."""
    first = segment * SEGMENT_SLOTS
    return range(max(first, slots.start), min(first + SEGMENT_SLOTS, slots.stop))


def slot_segments(slots: range) -> int:
    """Return how many segments the slots of a machine are in."""
    return (slots[-1] + SEGMENT_SLOTS) // SEGMENT_SLOTS


def boot_slots(
    names: Sequence[str], given: Iterable[tuple[str, int]], slots: range
) -> dict[str, int]:
    """Return the slot of each device, in the order of ``names``.

    ``given`` has the slots that the configuration names. Other devices get the lowest of segment 0.

    Raises:
        ConfigError: there are too few.
    """
    named = dict(given)
    used = set(named.values())
    free = iter([slot for slot in in_segment(slots, 0) if slot not in used])
    found: dict[str, int] = {}
    for name in names:
        slot = named.get(name)
        if slot is None:
            slot = next(free, None)
        if slot is None or slot not in slots:
            most = len(in_segment(slots, 0))
            raise ConfigError(f"{len(names)} devices are above the limit of {most} PCI slots")
        found[name] = slot
    return found
