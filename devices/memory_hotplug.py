# SPDX-License-Identifier: BSD-3-Clause
"""The memory hot-plug controller: which slots have a memory module (DIMM), and where it is.

Registers of 32 bits, which show the slot that was selected last:

- 0: the low half of the module's address; a write selects a slot;
- 4: the high half; 8 and 12: the length in bytes;
- 16: the NUMA node (proximity domain);
- 20, one byte: bit 0 says that there is a module, bit 1 that it is new, bit 2 that it is to be
  removed. Writing a 1 to bit 1 or 2 clears it. Bit 3 would eject a module, which cannot be.

They are those of Cloud Hypervisor, and AML uses them: no driver of the guest knows them.
"""

from __future__ import annotations

from devices.bus import all_ones
from sys_util.typing import Final, NamedTuple

MEMORY_HOTPLUG_BYTES: Final = 24
MEMORY_SLOTS: Final = 8

_FLAGS: Final = 20
_ENABLED: Final = 1 << 0
_INSERTING: Final = 1 << 1
_U32: Final = 0xFFFF_FFFF


class Dimm(NamedTuple):
    """A memory module: its addresses and its NUMA node."""

    gpa: int
    size_bytes: int
    node: int = 0


class MemoryHotplugController:
    """The registers. Every call needs the device-model lock."""

    def __init__(self) -> None:
        self._dimms: list[Dimm] = []
        self._inserting: set[int] = set()
        self._selected = 0

    @property
    def dimms(self) -> tuple[Dimm, ...]:
        """The modules, by their slots."""
        return tuple(self._dimms)

    @property
    def is_full(self) -> bool:
        """Whether every slot has a module."""
        return len(self._dimms) >= MEMORY_SLOTS

    def plugged(self, dimm: Dimm) -> None:
        """Show the guest a new module, in the next slot."""
        self._inserting.add(len(self._dimms))
        self._dimms.append(dimm)

    def take_last(self) -> Dimm:
        """Remove the module that came last; no guest runs."""
        self._inserting.discard(len(self._dimms) - 1)
        return self._dimms.pop()

    def reset(self) -> None:
        """Forget the guest, which finds the modules when it boots again."""
        self._selected = 0
        self._inserting.clear()

    def read(self, offset: int, size: int) -> int:
        if self._selected >= len(self._dimms):
            return 0
        if (offset, size) in ((_FLAGS, 1), (_FLAGS, 4)):
            return _ENABLED | (_INSERTING if self._selected in self._inserting else 0)
        if size != 4 or offset % 4:
            return all_ones(size)
        gpa, size_bytes, node = self._dimms[self._selected]
        registers = (gpa & _U32, gpa >> 32, size_bytes & _U32, size_bytes >> 32, node)
        return registers[offset // 4] if offset < _FLAGS else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self._selected = value
        elif offset == _FLAGS and size in (1, 4) and value & _INSERTING:
            self._inserting.discard(self._selected)
