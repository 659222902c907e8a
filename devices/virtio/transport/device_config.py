# SPDX-License-Identifier: BSD-3-Clause
"""The device-specific configuration as the driver sees it (virtio 1.3 §4.1.4.6, §2.5).

Reads answer from a copy, so that a device process that hangs cannot hang a vCPU.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# The region has this size for every device; a longer configuration is cut off.
MAX_CONFIG_BYTES: Final = 4096


class DeviceConfig:
    """The copy and its generation; writes inside it go to ``write_through(offset, data)``.

    A driver reads the generation, then fields, then the generation again, and believes the fields
    if both are equal (§2.5.1). The register has 8 bits, so a count of all changes would be equal
    after 256 of them, whether the driver read fields in between or not (§4.1.4.3.1 warns of it).
    Therefore only the first change after the generation was read alters it: two reads in a row
    are equal exactly if nothing changed between them.
    """

    def __init__(self, config: bytes, write_through: Callable[[int, bytes], None]) -> None:
        self.copy = config[:MAX_CONFIG_BYTES]
        self._generation = 0
        self._changed = False  # since the driver read the generation
        self._write_through = write_through

    def replace(self, config: bytes) -> None:
        """Take a new copy; a driver in the middle of reading sees the generation change."""
        config = config[:MAX_CONFIG_BYTES]
        if config != self.copy:
            self.copy = config
            self.advance()

    def reset(self) -> None:
        """Count from the start again, with the machine."""
        self._generation = 0
        self._changed = False

    def advance(self) -> None:
        """Let the next read of the generation return another one."""
        self._changed = True

    def read_generation(self) -> int:
        """Return the register ``config_generation``, as the driver reads it."""
        if self._changed:
            self._changed = False
            self._generation = (self._generation + 1) & 0xFF
        return self._generation

    def read(self, offset: int, size: int) -> int:
        """Return configuration bytes; fields that the device does not have read as 0."""
        return int.from_bytes(self.copy[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size <= len(self.copy):
            self._write_through(offset, value.to_bytes(size, "little"))
