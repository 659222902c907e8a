# SPDX-License-Identifier: BSD-3-Clause
"""The PCI root: which function is in which slot, and the two ways to configuration space.

``ConfigPorts`` is mechanism #1 at 0xCF8..0xCFF with the reset control register 0xCF9 inside it,
``Ecam`` the memory-mapped form (PCI Express 5.0 §7.2.2). All functions are on bus 0. A machine with
several segments has a root for each; the ports reach segment 0 alone.
"""

from __future__ import annotations

from devices.bus import all_ones
from devices.pci.address import SEGMENT_SLOTS
from devices.pci.config_space import CONFIG_SPACE_BYTES, ConfigSpace, PciIdentity
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG_PORTS_BASE: Final = 0xCF8
CONFIG_PORTS_BYTES: Final = 8
ECAM_BUS_BYTES: Final = 1 << 20

_ADDRESS_OFFSET: Final = 0
_RESET_OFFSET: Final = 1
_DATA_OFFSET: Final = 4
_ADDRESS_ENABLE: Final = 1 << 31
_ADDRESS_BITS: Final = 0x80FF_FFFC

# The reset control register of PIIX and ICH: SYS_RST picks the kind of reset, setting RST_CPU
# starts it. Operating systems write 2, then 6 (or 0xE).
_SYS_RST: Final = 1 << 1
_RST_CPU: Final = 1 << 2

# An Intel 440FX host bridge: operating systems know it, and it needs no driver.
HOST_BRIDGE: Final = PciIdentity(vendor_id=0x8086, device_id=0x1237, class_code=0x060000)


class PciFunction(Protocol):
    """One function on the bus, as configuration cycles see it."""

    def read_config(self, offset: int, size: int) -> int:
        """Return configuration bytes; the access may have any alignment."""
        ...

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write configuration bytes; the access may have any alignment."""
        ...


class HostBridge:
    """Slot 0, function 0: the bridge that every PCI machine has."""

    def __init__(self) -> None:
        self._space = ConfigSpace(HOST_BRIDGE)
        self._space.keep()

    def reset(self) -> None:
        """Return to the state in which the machine starts."""
        self._space.restore()

    def read_config(self, offset: int, size: int) -> int:
        return self._space.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self._space.write(offset, size, value)


class PciRoot:
    """Bus 0 of a segment and what is plugged into it.

    The host bridge is there from the start; without ``bridge`` slot 0 is like any other.
    """

    def __init__(self, *, bridge: bool = True) -> None:
        self._bridge = HostBridge() if bridge else None
        self._functions: dict[int, PciFunction] = {}
        if self._bridge is not None:
            self._functions[0] = self._bridge
        self._first_slot = 1 if bridge else 0

    def reset(self) -> None:
        """Reset the host bridge; whoever has plugged in other functions resets them."""
        if self._bridge is not None:
            self._bridge.reset()

    def add(self, slot: int, function: PciFunction) -> None:
        """Plug ``function`` into bus 0 as function 0 of ``slot``.

        Raises:
            ValueError: no such slot, or it is taken.
        """
        if not 0 <= slot < SEGMENT_SLOTS:
            raise ValueError(f"PCI slot {slot} is not in 0..{SEGMENT_SLOTS - 1}")
        if slot << 3 in self._functions:
            raise ValueError(f"PCI slot {slot} is taken")
        self._functions[slot << 3] = function

    def remove(self, slot: int) -> None:
        """Unplug the function in ``slot``; reads find nothing there then.

        Raises:
            ValueError: there is none, or it is the host bridge.
        """
        if slot < self._first_slot or slot << 3 not in self._functions:
            raise ValueError(f"PCI slot {slot} has nothing to remove")
        del self._functions[slot << 3]

    def read(self, bdf: int, offset: int, size: int) -> int:
        """Return configuration bytes of bus/device/function ``bdf``, all ones if absent."""
        function = self._functions.get(bdf)
        return all_ones(size) if function is None else function.read_config(offset, size)

    def write(self, bdf: int, offset: int, size: int, value: int) -> None:
        """Write configuration bytes of ``bdf``; ignored if absent."""
        function = self._functions.get(bdf)
        if function is not None:
            function.write_config(offset, size, value)


class ConfigPorts:
    """The ports 0xCF8..0xCFF: address and data of mechanism #1, and the reset register."""

    def __init__(self, root: PciRoot, on_reset: Callable[[], None]) -> None:
        self._root = root
        self._on_reset = on_reset
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts."""
        self._address = 0
        self._reset_control = 0

    def read(self, offset: int, size: int) -> int:
        if offset >= _DATA_OFFSET:
            if size > 4 or not self._address & _ADDRESS_ENABLE:
                return all_ones(size)
            return self._root.read(self._bdf, self._register(offset), size)
        if (offset, size) == (_ADDRESS_OFFSET, 4):
            return self._address
        if (offset, size) == (_RESET_OFFSET, 1):
            return self._reset_control
        return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= _DATA_OFFSET:
            if size <= 4 and self._address & _ADDRESS_ENABLE:
                self._root.write(self._bdf, self._register(offset), size, value)
        elif (offset, size) == (_ADDRESS_OFFSET, 4):
            self._address = value & _ADDRESS_BITS
        elif (offset, size) == (_RESET_OFFSET, 1):
            self._reset_control = value & _SYS_RST
            if value & _RST_CPU:
                self._on_reset()

    @property
    def _bdf(self) -> int:
        return self._address >> 8 & 0xFFFF

    def _register(self, offset: int) -> int:
        return (self._address & 0xFC) + offset - _DATA_OFFSET


class Ecam:
    """Memory-mapped configuration space: 4096 bytes a function, 1 MiB a bus."""

    def __init__(self, root: PciRoot) -> None:
        self._root = root

    def read(self, offset: int, size: int) -> int:
        return self._root.read(offset // CONFIG_SPACE_BYTES, offset % CONFIG_SPACE_BYTES, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._root.write(offset // CONFIG_SPACE_BYTES, offset % CONFIG_SPACE_BYTES, size, value)
