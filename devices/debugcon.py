# SPDX-License-Identifier: BSD-3-Clause
"""Bochs debug console: one port that takes bytes; firmware looks for it at 0x402."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.serial import ByteSink

DEBUGCON_LENGTH: Final = 1

# A read of the port answers this; that is how firmware finds the device.
DEBUGCON_MAGIC: Final = 0xE9


class DebugConsole:
    """Pass every byte on to a sink."""

    def __init__(self, sink: ByteSink) -> None:
        self._put = sink.write

    def read(self, offset: int, size: int) -> int:
        return DEBUGCON_MAGIC

    def write(self, offset: int, size: int, value: int) -> None:
        self._put(bytes((value & 0xFF,)))
