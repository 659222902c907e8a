# SPDX-License-Identifier: BSD-3-Clause
"""What a device has stored for the process after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.virtio.saved_state import SavedState


def stored(saved: SavedState) -> dict[str, object] | None:
    """Return the fields that the next process would find; what is nonsense is cleared."""
    found: list[dict[str, object]] = []
    return found[0] if saved.restore(found.append) else None


def store_raw(saved: SavedState, data: bytes) -> None:
    """Leave any bytes as a state, as a process can that was taken over."""
    generation = saved._cells[31] % ((1 << 63) - 1) + 1
    slot = 32 + 240 * (generation & 1)
    saved._cells[slot] = len(data)
    saved._bytes[8 * slot + 8 : 8 * slot + 8 + len(data)] = data
    saved._cells[31] = generation
