# SPDX-License-Identifier: BSD-3-Clause
"""Keyboard controller without keyboard or mouse; PCs use it to reset the CPU.

Ports 0x60 (data), 0x61 (system control B) and 0x64 (status and command), one range of five.

The FADT leaves IAPC_BOOT_ARCH bit 1 clear, so Linux with ACPI never probes. A kernel that probes
all the same starts by emptying the output buffer and gives up once more than 16 (older: 32) bytes
came out. The buffer therefore holds ``STALE_BYTES`` at power-on, so that the probe ends after some
35 accesses with "No controller found"; each answer that never came would cost the guest 10,000
reads of the status. A driver that does not count the bytes empties the buffer in the end, and so
does any command. Commands get the answers of a controller with nothing plugged in.

Bit 1 of the status, input buffer full, is never set: ``reboot=k`` waits for that.

KVM's in-kernel PIT handles port 0x61 itself when it is made with KVM_PIT_SPEAKER_DUMMY. Otherwise
this device does: bit 4 toggles on each read as DRAM refresh does, and bit 5 says that PIT channel 2
has finished, so that calibration loops end.
"""

from __future__ import annotations

from collections import deque

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

I8042_BASE: Final = 0x60
I8042_LENGTH: Final = 5

DATA_OFFSET: Final = 0
CONTROL_B_OFFSET: Final = 1
COMMAND_OFFSET: Final = 4

STATUS_OBF: Final = 0x01
STATUS_SYSTEM: Final = 0x04  # self-test passed
STATUS_COMMAND: Final = 0x08
STATUS_UNLOCKED: Final = 0x10

STALE_BYTES: Final = 40
# Bounds the answers that writes to port 0x60 pile up; no driver waits for so many.
MAX_PENDING_BYTES: Final = 64

COMMAND_READ_CONFIG: Final = 0x20
COMMAND_WRITE_CONFIG: Final = 0x60
COMMAND_WRITE_OUTPUT_PORT: Final = 0xD1
COMMAND_LOOP_KEYBOARD: Final = 0xD2
COMMAND_LOOP_MOUSE: Final = 0xD3
COMMAND_WRITE_MOUSE: Final = 0xD4
_WITH_PARAMETER: Final = frozenset(
    {
        COMMAND_WRITE_CONFIG,
        COMMAND_WRITE_OUTPUT_PORT,
        COMMAND_LOOP_KEYBOARD,
        COMMAND_LOOP_MOUSE,
        COMMAND_WRITE_MOUSE,
    }
)

# Answers that never change: self-test passed, both device clocks stuck (nothing plugged in), and
# an output port with A20 and "not reset" high. Both loops are answered as from the keyboard,
# which is how a controller without a mouse port behaves.
_ANSWERS: Final = {0xA9: 0x01, 0xAA: 0x55, 0xAB: 0x01, 0xC0: 0x80, 0xD0: 0x03}

RESEND: Final = 0xFE
CONFIG_DEFAULT: Final = 0x30  # both ports disabled, no interrupts


class I8042:
    """The CPU's reset line, and quick answers for drivers that look for a keyboard."""

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts."""
        self._output: deque[int] = deque([0] * STALE_BYTES)
        self._config = CONFIG_DEFAULT
        self._parameter_of: int | None = None
        self._status = STATUS_UNLOCKED
        self._control_b = 0

    def read(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            value |= self._read_byte(offset + i) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            self._write_byte(offset + i, (value >> (8 * i)) & 0xFF)

    def _read_byte(self, at: int) -> int:
        if at == COMMAND_OFFSET:
            return self._status | (STATUS_OBF if self._output else 0)
        if at == DATA_OFFSET:
            return self._output.popleft() if self._output else 0
        if at == CONTROL_B_OFFSET:
            self._control_b ^= 0x10
            return self._control_b | 0x20
        return 0xFF

    def _write_byte(self, at: int, value: int) -> None:
        if at == COMMAND_OFFSET:
            self._command(value)
        elif at == DATA_OFFSET:
            self._data(value)
        elif at == CONTROL_B_OFFSET:
            self._control_b = (self._control_b & 0x10) | (value & 0x0F)

    def _command(self, value: int) -> None:
        self._output.clear()
        self._parameter_of = value if value in _WITH_PARAMETER else None
        self._status |= STATUS_COMMAND
        if value == COMMAND_READ_CONFIG:
            self._output.append(self._config)
        elif value in _ANSWERS:
            self._output.append(_ANSWERS[value])
            if value == 0xAA:
                self._status |= STATUS_SYSTEM
        elif value & 0xF1 == 0xF0:  # pulse output lines that include bit 0, the CPU's reset
            self._on_reset()

    def _data(self, value: int) -> None:
        command, self._parameter_of = self._parameter_of, None
        self._status &= ~STATUS_COMMAND
        if command == COMMAND_WRITE_CONFIG:
            self._config = value
        elif command == COMMAND_WRITE_OUTPUT_PORT:
            if not value & 0x01:
                self._on_reset()
        elif command in (COMMAND_LOOP_KEYBOARD, COMMAND_LOOP_MOUSE):
            self._output.append(value)
        elif len(self._output) < MAX_PENDING_BYTES:  # for a keyboard or mouse that is not there
            self._output.append(RESEND)
