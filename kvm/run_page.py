# SPDX-License-Identifier: BSD-3-Clause
"""Read the ``struct kvm_run`` page: why a vCPU left the guest, and the data of that exit.

The offsets come from the compiler. The page is little-endian and naturally aligned, so we read it
through views and ``struct`` formats, which is much faster than one object for each field.
"""

from __future__ import annotations

import struct

from kvm._kvm import lib
from sys_util.typing import Final

KVM_EXIT_IO: Final[int] = lib.KVM_EXIT_IO
KVM_EXIT_MMIO: Final[int] = lib.KVM_EXIT_MMIO
KVM_EXIT_SHUTDOWN: Final[int] = lib.KVM_EXIT_SHUTDOWN
KVM_EXIT_FAIL_ENTRY: Final[int] = lib.KVM_EXIT_FAIL_ENTRY
KVM_EXIT_INTR: Final[int] = lib.KVM_EXIT_INTR
KVM_EXIT_INTERNAL_ERROR: Final[int] = lib.KVM_EXIT_INTERNAL_ERROR
KVM_EXIT_SYSTEM_EVENT: Final[int] = lib.KVM_EXIT_SYSTEM_EVENT
KVM_EXIT_IO_IN: Final[int] = lib.KVM_EXIT_IO_IN
KVM_SYSTEM_EVENT_SHUTDOWN: Final[int] = lib.KVM_SYSTEM_EVENT_SHUTDOWN
KVM_SYSTEM_EVENT_RESET: Final[int] = lib.KVM_SYSTEM_EVENT_RESET
KVM_SYSTEM_EVENT_CRASH: Final[int] = lib.KVM_SYSTEM_EVENT_CRASH
KVM_INTERNAL_ERROR_EMULATION: Final[int] = lib.KVM_INTERNAL_ERROR_EMULATION

EXIT_NAMES: Final = {
    getattr(lib, name): name
    for name in (
        "KVM_EXIT_UNKNOWN",
        "KVM_EXIT_EXCEPTION",
        "KVM_EXIT_HYPERCALL",
        "KVM_EXIT_DEBUG",
        "KVM_EXIT_HLT",
        "KVM_EXIT_IRQ_WINDOW_OPEN",
        "KVM_EXIT_SET_TPR",
        "KVM_EXIT_TPR_ACCESS",
        "KVM_EXIT_NMI",
        "KVM_EXIT_IOAPIC_EOI",
    )
}
INTERNAL_ERROR_NAMES: Final = {
    lib.KVM_INTERNAL_ERROR_EMULATION: "emulation failed",
    lib.KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    lib.KVM_INTERNAL_ERROR_DELIVERY_EV: "exit while an event was delivered",
    lib.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "unexpected exit reason",
}

# Formats of the two most frequent exits; tests compare them with the offsets in the header.
IO_FORMAT: Final = struct.Struct("<BBHIQ")  # direction, size, port, count, data_offset
MMIO_FORMAT: Final = struct.Struct("<QQIB")  # phys_addr, data, len, is_write

_MAX_INSN_BYTES: Final = 15
_INSN_BYTES_VALID: Final = 1  # KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES


class RunPage:
    """The run page of one vCPU. ``u8`` to ``u64`` are views of the whole page, as such integers."""

    __slots__ = ("u8", "u16", "u32", "u64")

    def __init__(self, page: memoryview) -> None:
        self.u8 = page
        self.u16 = page.cast("H")
        self.u32 = page.cast("I")
        self.u64 = page.cast("Q")

    def exit_reason(self) -> int:
        """Return the ``KVM_EXIT_…`` of the last exit."""
        return self.u32[lib.RUN_EXIT_REASON // 4]

    def io(self) -> tuple[int, int, int, int, int]:
        """Return direction, size, port, count and the offset of the data in the page."""
        direction, size, port, count, offset = IO_FORMAT.unpack_from(self.u8, lib.RUN_IO)
        return direction, size, port, count, offset

    def mmio(self) -> tuple[int, int, int, int]:
        """Return address, data (8 bytes, of which ``length`` are valid), length and is_write."""
        address, data, length, is_write = MMIO_FORMAT.unpack_from(self.u8, lib.RUN_MMIO)
        return address, data, length, is_write

    def set_mmio_data(self, value: int) -> None:
        """Set the data that the guest gets for its MMIO read."""
        self.u64[lib.RUN_MMIO_DATA // 8] = value

    def hardware_reason(self) -> int:
        """Return the processor's reason of a KVM_EXIT_UNKNOWN or KVM_EXIT_FAIL_ENTRY."""
        return self.u64[lib.RUN_FAIL_REASON // 8]

    def system_event(self) -> int:
        """Return the ``KVM_SYSTEM_EVENT_…``."""
        return self.u32[lib.RUN_SYSTEM_EVENT // 4]

    def internal_error(self) -> tuple[int, tuple[int, ...]]:
        """Return the ``KVM_INTERNAL_ERROR_…`` and the data words that KVM added."""
        first = lib.RUN_INTERNAL_DATA // 8
        words = min(self.u32[lib.RUN_INTERNAL_NDATA // 4], 16)
        return self.u32[lib.RUN_INTERNAL // 4], tuple(self.u64[first : first + words])

    def instruction(self) -> bytes:
        """Return the bytes of the instruction that KVM could not emulate, if KVM fetched them."""
        words = self.u32[lib.RUN_INTERNAL_NDATA // 4]
        if words < 3 or not self.u64[lib.RUN_INSN_FLAGS // 8] & _INSN_BYTES_VALID:
            return b""
        size = min(self.u8[lib.RUN_INSN_SIZE], _MAX_INSN_BYTES)
        return bytes(self.u8[lib.RUN_INSN_BYTES : lib.RUN_INSN_BYTES + size])
