# SPDX-License-Identifier: BSD-3-Clause
"""The device-specific configuration as the driver sees it (virtio 1.3 §4.1.4.6, §2.5).

Reads answer from a copy, so that a device process that hangs cannot hang a vCPU.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# The region has this size whatever the device; what a device says beyond it is cut off.
MAX_CONFIG_BYTES: Final = 4096


class DeviceConfig:
    """The copy and its generation; writes inside it go to ``write_through(offset, data)``."""

    def __init__(self, config: bytes, write_through: Callable[[int, bytes], None]) -> None:
        self.generation = 0
        self.copy = config[:MAX_CONFIG_BYTES]
        self._write_through = write_through

    def replace(self, config: bytes) -> None:
        """Take a new copy; a driver in the middle of reading sees the generation change."""
        config = config[:MAX_CONFIG_BYTES]
        if config != self.copy:
            self.copy = config
            self.advance()

    def advance(self) -> None:
        """Change the generation."""
        self.generation = (self.generation + 1) & 0xFF

    def read(self, offset: int, size: int) -> int:
        """Return configuration bytes; fields that the device does not have read as 0."""
        return int.from_bytes(self.copy[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size <= len(self.copy):
            self._write_through(offset, value.to_bytes(size, "little"))
