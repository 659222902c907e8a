# SPDX-License-Identifier: BSD-3-Clause
"""Model-specific registers that must not start at KVM's reset value.

KVM sets all others that a kernel expects to be 0 (SYSENTER, STAR, the TSC, …) to 0 itself.
"""

from __future__ import annotations

from crosvm_py.machine.x86_64.layout import MMIO_HOLE_END, MMIO_HOLE_START
from sys_util.log import get_logger
from sys_util.typing import Final, Protocol

log = get_logger("crosvm_py.x86_64.msrs")

MSR_IA32_MISC_ENABLE: Final = 0x1A0
MSR_MTRR_PHYS_BASE_0: Final = 0x200
MSR_MTRR_DEF_TYPE: Final = 0x2FF

MISC_ENABLE_FAST_STRING: Final = 1 << 0
MTRR_ENABLE: Final = 1 << 11
MTRR_TYPE_UNCACHED: Final = 0
MTRR_TYPE_WRITE_BACK: Final = 6
MTRR_MASK_VALID: Final = 1 << 11


class MsrVcpu(Protocol):
    """The part of a ``Vcpu`` that is needed here."""

    @property
    def index(self) -> int:
        """Its number."""
        ...

    def set_msr(self, index: int, value: int) -> bool:
        """Set one register; return whether KVM took it."""
        ...


def uncached_ranges(start: int, end: int) -> list[tuple[int, int]]:
    """Split ``start``…``end`` into (base, size) that variable MTRRs can express.

    Each size is a power of two and each base a multiple of it (SDM volume 3 §12.11.4).
    """
    ranges = []
    while start < end:
        size = start & -start
        while start + size > end:
            size >>= 1
        ranges.append((start, size))
        start += size
    return ranges


def boot_msrs(physical_address_bits: int) -> list[tuple[int, int]]:
    """Return (index, value): enable fast strings; cache all memory but the PCI hole write-back."""
    msrs = [
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_TYPE_WRITE_BACK),
    ]
    address_mask = (1 << physical_address_bits) - 1
    index = MSR_MTRR_PHYS_BASE_0
    for base, size in uncached_ranges(MMIO_HOLE_START, MMIO_HOLE_END):
        msrs.append((index, base | MTRR_TYPE_UNCACHED))
        msrs.append((index + 1, ~(size - 1) & address_mask | MTRR_MASK_VALID))
        index += 2
    return msrs


def set_boot_msrs(vcpu: MsrVcpu, physical_address_bits: int) -> None:
    """Set the registers one by one. Most guests run even if KVM lacks one of them."""
    for index, value in boot_msrs(physical_address_bits):
        if not vcpu.set_msr(index, value):
            log.debug("vCPU %d: KVM refuses %#x for MSR %#x", vcpu.index, value, index)
