# SPDX-License-Identifier: BSD-3-Clause
"""Memory BARs and the window of the machine in which they may be decoded (PCI 3.0 §6.2.5).

The guest may put a BAR anywhere at any time. A BAR outside the window answers nowhere. Where two
overlap, the BAR that was there first keeps the addresses, and the other one gets them when they
become free. So no order of register writes is an error.
"""

from __future__ import annotations

from devices.pci.config_space import PCI_BASE_ADDRESS_0
from sys_util.typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from devices.bus import Bus, BusDevice
    from devices.pci.config_space import ConfigSpace


class BarListener(Protocol):
    """Somebody who is told where a BAR is decoded."""

    def bar_moved(self, address: int | None) -> None:
        """Follow the BAR to its new address; ``None`` means that it answers nowhere."""
        ...


class BarWindow:
    """The guest-physical addresses from ``base`` up to ``end`` that belong to PCI devices."""

    def __init__(self, bus: Bus, base: int, end: int) -> None:
        self._bus = bus
        self._base = base
        self._end = end
        self._next_free = base
        self._freed: dict[int, list[int]] = {}  # initial addresses to use again, by size
        self._waiting: list[MemoryBar] = []

    def allocate(self, size_bytes: int) -> int:
        """Return an initial, naturally aligned address for a BAR.

        Raises:
            ValueError: the window is full.
        """
        if self._freed.get(size_bytes):
            return self._freed[size_bytes].pop()
        address = (self._next_free + size_bytes - 1) & ~(size_bytes - 1)
        if address + size_bytes > self._end:
            raise ValueError(f"no {size_bytes:#x} bytes left in PCI window below {self._end:#x}")
        self._next_free = address + size_bytes
        return address

    def free(self, address: int, size_bytes: int) -> None:
        """Take back what ``allocate`` has returned; the BAR is decoded nowhere any more."""
        self._freed.setdefault(size_bytes, []).append(address)

    def place(self, bar: MemoryBar) -> None:
        """Decode ``bar`` at the address that it wants now, as soon as that is possible."""
        if bar in self._waiting:
            self._waiting.remove(bar)
        if bar.address == bar.wanted:
            return
        freed = bar.address is not None
        if bar.address is not None:
            self._bus.remove(bar.address)
            bar.set_address(None)
        self._try(bar)
        if freed:
            waiting, self._waiting = self._waiting, []
            for other in waiting:
                self._try(other)

    def _try(self, bar: MemoryBar) -> None:
        wanted = bar.wanted
        if wanted is None or wanted < self._base or wanted + bar.size_bytes > self._end:
            return
        try:
            self._bus.insert(wanted, bar.size_bytes, bar.device)
        except ValueError:
            self._waiting.append(bar)
        else:
            bar.set_address(wanted)


class MemoryBar:
    """A 32-bit, non-prefetchable memory BAR; its size is a power of two of 16 bytes or more."""

    def __init__(
        self, space: ConfigSpace, index: int, device: BusDevice, size_bytes: int, window: BarWindow
    ) -> None:
        self.device = device
        self.size_bytes = size_bytes
        self.address: int | None = None
        self.wanted: int | None = None
        self._space = space
        self.register = PCI_BASE_ADDRESS_0 + 4 * index
        self._window = window
        self._listeners: list[BarListener] = []
        self._initial = window.allocate(size_bytes)
        space.set(self.register, 4, self._initial, writable=-size_bytes & 0xFFFF_FFFF)

    def add_listener(self, listener: BarListener) -> None:
        """Tell ``listener`` of every move from now on."""
        self._listeners.append(listener)

    def decode(self, *, enabled: bool) -> None:
        """Follow the BAR's register, or stop answering when memory decoding is off."""
        self.wanted = self._space.get(self.register, 4) if enabled else None
        self._window.place(self)

    def close(self) -> None:
        """Answer nowhere any more; another BAR may begin at the address where this one began."""
        self.decode(enabled=False)
        self._window.free(self._initial, self.size_bytes)

    def set_address(self, address: int | None) -> None:
        """Note where the window decodes this BAR now."""
        self.address = address
        for listener in self._listeners:
            listener.bar_moved(address)
