# SPDX-License-Identifier: BSD-3-Clause
"""Port and memory-mapped I/O buses: which device answers at which address.

Both buses of a machine share one re-entrant lock, the device-model lock. It is held around every
device call, so devices have no locks of their own and must never block. A device may change the
bus from inside its own call (moving a BAR does): the bus has ended its lookup by then.
"""

from __future__ import annotations

from bisect import bisect_right

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

ALL_ONES: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


class BusDevice(Protocol):
    """A range of registers. Offsets count from its base; values are little-endian."""

    def read(self, offset: int, size: int) -> int:
        """Return the register's value; ``size`` is 1, 2, 4 or 8 and the access is in range."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Store ``value``, which fits in ``size`` bytes."""
        ...


class IrqLine(Protocol):
    """One interrupt line of one device. Edge-triggered devices raise it and lower it again."""

    def set_level(self, asserted: bool) -> None:
        """Drive the line; a shared line stays up while any of its devices asserts it."""
        ...


class BusRange(NamedTuple):
    """``length`` addresses from ``base`` that belong to ``device``."""

    base: int
    end: int
    device: BusDevice

    def __str__(self) -> str:
        return f"{self.base:#x}+{self.end - self.base:#x} ({type(self.device).__name__})"


def all_ones(size: int) -> int:
    """Return what a read of ``size`` bytes finds where nothing answers."""
    return (1 << (8 * size)) - 1 if size > 0 else 0


class Bus:
    """Route accesses to the devices of one address space.

    The tables are replaced, never changed in place, so that ``ranges`` may be read at any time.
    """

    def __init__(self, name: str, lock: AbstractContextManager[bool]) -> None:
        self.name = name
        self._lock = lock
        self._bases: list[int] = []
        self._ranges: list[BusRange] = []
        # Nearly all port exits of a boot go to one serial port: try the last range first.
        self._last_base = 0
        self._last_end = 0
        self._last_device: BusDevice | None = None

    @property
    def ranges(self) -> tuple[BusRange, ...]:
        """Every range, sorted by address."""
        return tuple(self._ranges)

    def __repr__(self) -> str:
        return f"<Bus {self.name}: {', '.join(map(str, self._ranges))}>"

    def insert(self, base: int, length: int, device: BusDevice) -> None:
        """Give ``length`` addresses from ``base`` to ``device``.

        Raises:
            ValueError: the range is empty, negative or overlaps another one.
        """
        new = BusRange(base, base + length, device)
        if base < 0 or length <= 0:
            raise ValueError(f"{self.name}: {new} is not a range")
        with self._lock:
            at = bisect_right(self._bases, base)
            for neighbour in self._ranges[max(at - 1, 0) : at + 1]:
                if neighbour.base < new.end and new.base < neighbour.end:
                    raise ValueError(f"{self.name}: {new} overlaps {neighbour}")
            self._replace([*self._ranges[:at], new, *self._ranges[at:]])

    def remove(self, base: int) -> None:
        """Take the range that starts at ``base`` off the bus.

        Raises:
            ValueError: no range starts there.
        """
        with self._lock:
            if base not in self._bases:
                raise ValueError(f"{self.name}: no range starts at {base:#x}")
            self._replace([entry for entry in self._ranges if entry.base != base])

    def read(self, address: int, size: int) -> int:
        """Return the value at ``address``: all ones where no device covers the whole access."""
        ones = ALL_ONES.get(size)
        if ones is None:
            return all_ones(size)
        with self._lock:
            device = self._find(address, size)
            if device is None:
                return ones
            return device.read(address - self._last_base, size) & ones

    def write(self, address: int, size: int, value: int) -> None:
        """Store ``value`` at ``address``; ignored where no device covers the whole access."""
        ones = ALL_ONES.get(size)
        if ones is None:
            return
        with self._lock:
            device = self._find(address, size)
            if device is not None:
                device.write(address - self._last_base, size, value & ones)

    def _find(self, address: int, size: int) -> BusDevice | None:
        """Return the device that covers the access and remember its range."""
        if self._last_base <= address and address + size <= self._last_end:
            return self._last_device
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        entry = self._ranges[at]
        if address + size > entry.end:
            return None
        self._last_base, self._last_end, self._last_device = entry
        return entry.device

    def _replace(self, ranges: list[BusRange]) -> None:
        self._bases = [entry.base for entry in ranges]
        self._ranges = ranges
        self._last_base = self._last_end = 0
        self._last_device = None
