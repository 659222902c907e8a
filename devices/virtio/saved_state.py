# SPDX-License-Identifier: BSD-3-Clause
"""What a device process saves for the process that replaces it.

The state lies in the page of the counters, which both processes and the vmm map. There are two
slots: a state is written to the one that is not in use, and then one 64-bit store makes that slot
the valid one. So a process that is killed at any moment leaves a whole state, the old or the new.

The reader trusts the state no more than the guest: the process that wrote it may have been
compromised.
"""

from __future__ import annotations

from sys_util import msgpack
from sys_util.errors import ProtocolError, VmmError
from sys_util.linux import full_barrier
from sys_util.log import get_logger
from sys_util.stranger import judged, unpack_fields
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = get_logger("devices.virtio.saved_state")

# The first cells hold the counters; see counters.py.
_GENERATION: Final = 31  # of the valid state, 0 if there is none; its lowest bit is the slot
_FIRST_SLOT: Final = 32
_SLOT_CELLS: Final = 240
PAGE_CELLS: Final = _FIRST_SLOT + 2 * _SLOT_CELLS

# A slot starts with the length of its state.
MAX_STATE_BYTES: Final = 8 * (_SLOT_CELLS - 1)

_GENERATIONS: Final = (1 << 63) - 1


class SavedState:
    """The saved state of one device, in a page of 64-bit cells."""

    __slots__ = ("_bytes", "_cells")

    def __init__(self, cells: memoryview[int] | None = None) -> None:
        """Without ``cells`` nothing outlives this object, and nothing was saved before."""
        if cells is None:
            cells = memoryview(bytearray(8 * PAGE_CELLS)).cast("Q")
        self._cells = cells
        self._bytes = cells.cast("B")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored, as for the first process of a device."""
        return not self._cells[_GENERATION]

    def restore(self, take_up: Callable[[dict[str, object]], None]) -> bool:
        """Call ``take_up`` with the fields that the last process stored; return whether it did.

        ``take_up`` checks all fields before it changes anything. Whatever exception it raises, the
        state is nonsense: it is cleared, so that no later process reads it, and the device starts
        without one.
        """
        if self.is_empty:
            return False
        try:
            judged("a field", take_up, unpack_fields(self._load()))
        except VmmError as error:
            _log.warning("saved state is not used: %s", error)
            self.clear()
            return False
        return True

    def clear(self) -> None:
        """Forget what is stored. The vmm does this when a device could not start with it."""
        self._cells[_GENERATION] = 0

    def _load(self) -> bytes:
        slot = _slot(self._cells[_GENERATION])
        length = self._cells[slot]
        if length > MAX_STATE_BYTES:
            raise ProtocolError(f"it has {length} bytes")
        start = 8 * (slot + 1)
        return bytes(self._bytes[start : start + length])

    def store(self, fields: Mapping[str, object]) -> None:
        """Replace the state; at every moment there is a valid one.

        Raises:
            ValueError: ``fields`` need more than ``MAX_STATE_BYTES``, which is our bug.
        """
        packed: bytes = msgpack.packb(fields)
        if len(packed) > MAX_STATE_BYTES:
            raise ValueError(f"state of {len(packed)} bytes")
        generation = self._cells[_GENERATION] % _GENERATIONS + 1
        slot = _slot(generation)
        start = 8 * (slot + 1)
        self._cells[slot] = len(packed)
        self._bytes[start : start + len(packed)] = packed
        full_barrier()
        self._cells[_GENERATION] = generation


def _slot(generation: int) -> int:
    return _FIRST_SLOT + (generation & 1) * _SLOT_CELLS
