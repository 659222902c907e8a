# SPDX-License-Identifier: BSD-3-Clause
"""The 4096 bytes of configuration space of one PCI function (PCI Local Bus 3.0 §6).

Every byte has a mask of the bits that the guest may write, so any size and alignment of access is
safe by construction. Code that acts on an access to a register adds a hook.
"""

from __future__ import annotations

from devices.bus import all_ones
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG_SPACE_BYTES: Final = 4096
CONVENTIONAL_BYTES: Final = 256

PCI_VENDOR_ID: Final = 0x00
PCI_DEVICE_ID: Final = 0x02
PCI_COMMAND: Final = 0x04
PCI_STATUS: Final = 0x06
PCI_REVISION_ID: Final = 0x08
PCI_BASE_ADDRESS_0: Final = 0x10
PCI_SUBSYSTEM_VENDOR_ID: Final = 0x2C
PCI_SUBSYSTEM_ID: Final = 0x2E
PCI_CAPABILITY_LIST: Final = 0x34
PCI_INTERRUPT_LINE: Final = 0x3C
PCI_INTERRUPT_PIN: Final = 0x3D
FIRST_CAPABILITY: Final = 0x40

PCI_COMMAND_MEMORY: Final = 1 << 1
PCI_COMMAND_MASTER: Final = 1 << 2
PCI_COMMAND_INTX_DISABLE: Final = 1 << 10
PCI_STATUS_INTERRUPT: Final = 1 << 3
PCI_STATUS_CAP_LIST: Final = 1 << 4

PCI_CAP_ID_VNDR: Final = 0x09
PCI_CAP_ID_MSIX: Final = 0x11

PCI_INTERRUPT_PIN_A: Final = 1


class PciIdentity(NamedTuple):
    """What a function says it is; ``class_code`` is base class, subclass and interface."""

    vendor_id: int
    device_id: int
    class_code: int
    revision: int = 0
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0


class _Hook(NamedTuple):
    start: int
    end: int
    call: Callable[[], None]


class ConfigSpace:
    """The registers of one type-0 function; at first only the interrupt line is writable."""

    def __init__(self, identity: PciIdentity) -> None:
        self._data = bytearray(CONFIG_SPACE_BYTES)
        self._writable = bytearray(CONFIG_SPACE_BYTES)
        self._read_hooks: list[_Hook] = []
        self._write_hooks: list[_Hook] = []
        self._kept = b""
        self._last_capability = 0
        self._next_capability = FIRST_CAPABILITY
        self.set(PCI_VENDOR_ID, 2, identity.vendor_id)
        self.set(PCI_DEVICE_ID, 2, identity.device_id)
        self.set(PCI_REVISION_ID, 4, identity.class_code << 8 | identity.revision)
        self.set(PCI_SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor_id)
        self.set(PCI_SUBSYSTEM_ID, 2, identity.subsystem_id)
        self.set(PCI_INTERRUPT_LINE, 1, 0, writable=0xFF)

    def get(self, offset: int, size: int) -> int:
        """Return a register without side effects."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int, *, writable: int | None = None) -> None:
        """Set a register from the device's side, and which of its bits the guest may write."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")
        if writable is not None:
            self._writable[offset : offset + size] = writable.to_bytes(size, "little")

    def set_bits(self, offset: int, bits: int, *, on: bool) -> None:
        """Set or clear ``bits`` of a 16-bit register from the device's side."""
        value = self.get(offset, 2)
        self.set(offset, 2, value | bits if on else value & ~bits)

    def on_read(self, offset: int, length: int, call: Callable[[], None]) -> None:
        """Call before the guest reads any byte of the range."""
        self._read_hooks.append(_Hook(offset, offset + length, call))

    def on_write(self, offset: int, length: int, call: Callable[[], None]) -> None:
        """Call after the guest wrote any byte of the range."""
        self._write_hooks.append(_Hook(offset, offset + length, call))

    def keep(self) -> None:
        """Keep what the registers are now, for ``restore``. Nothing beyond byte 256 is writable."""
        self._kept = bytes(self._data[:CONVENTIONAL_BYTES])

    def restore(self) -> None:
        """Set every register to what it was at ``keep``; no hook is called."""
        self._data[: len(self._kept)] = self._kept

    def add_capability(self, cap_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability and return its offset; ``body`` begins after the next pointer.

        ``writable`` has the bits of ``body`` that the guest may write, from its start.

        Raises:
            ValueError: it does not fit below byte 256.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONVENTIONAL_BYTES:
            raise ValueError(f"capability {cap_id:#x} of {len(body) + 2} bytes at {offset:#x}")
        self._data[offset] = cap_id
        self._data[offset + 2 : end] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        previous = self._last_capability + 1 if self._last_capability else PCI_CAPABILITY_LIST
        self._data[previous] = offset
        self.set_bits(PCI_STATUS, PCI_STATUS_CAP_LIST, on=True)
        self._last_capability = offset
        self._next_capability = (end + 3) & ~3
        return offset

    def read(self, offset: int, size: int) -> int:
        """Answer the guest; bytes past the end read as ones."""
        for hook in self._read_hooks:
            if hook.start < offset + size and offset < hook.end:
                hook.call()
        value = self.get(offset, size)
        inside = min(max(CONFIG_SPACE_BYTES - offset, 0), size)
        return value | all_ones(size - inside) << 8 * inside

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the guest's write: only writable bits change, bytes past the end are dropped."""
        for at, byte in enumerate(value.to_bytes(size, "little")[: CONFIG_SPACE_BYTES - offset]):
            mask = self._writable[offset + at]
            if mask:
                self._data[offset + at] = self._data[offset + at] & ~mask | byte & mask
        for hook in self._write_hooks:
            if hook.start < offset + size and offset < hook.end:
                hook.call()
