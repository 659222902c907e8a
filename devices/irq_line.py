# SPDX-License-Identifier: BSD-3-Clause
"""One interrupt line for several devices."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.bus import IrqLine


class SharedIrqLine:
    """A level-triggered line that stays up while any of the devices on it asserts it.

    PCI functions share INTx pins in this way, and COM ports share IRQs. The device-model lock
    protects it, as it does the devices.
    """

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._asserting: set[int] = set()
        self._sources = 0

    def add_source(self) -> IrqLine:
        """Return a line for one more device to drive."""
        self._sources += 1
        return _Source(self, self._sources)

    def set_source(self, source: int, *, asserted: bool) -> None:
        """Record the level that one device drives, and change the shared line if need be."""
        was = bool(self._asserting)
        if asserted:
            self._asserting.add(source)
        else:
            self._asserting.discard(source)
        if bool(self._asserting) != was:
            self._line.set_level(not was)


class _Source:
    def __init__(self, shared: SharedIrqLine, source: int) -> None:
        self._shared = shared
        self._source = source

    def set_level(self, asserted: bool) -> None:
        self._shared.set_source(self._source, asserted=asserted)
