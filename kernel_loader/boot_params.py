# SPDX-License-Identifier: BSD-3-Clause
"""Build what a kernel gets at its entry: Linux's zero page and setup_data, or PVH's start info.

Layouts: ``struct boot_params`` in <asm/bootparam.h>, Documentation/arch/x86/zero-page.rst, and
Xen's public/arch-x86/hvm/start_info.h. These functions only return bytes; ``load.py`` writes them
to guest memory.
"""

from __future__ import annotations

from struct import Struct, pack_into

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

E820_RAM: Final = 1
E820_RESERVED: Final = 2
E820_MAX_ENTRIES: Final = 128

ZERO_PAGE_BYTES: Final = 4096
SETUP_RNG_SEED: Final = 9
SETUP_DATA: Final = Struct("<QII")  # next, type, len

HVM_START_MAGIC: Final = 0x336EC578
HVM_START_VERSION: Final = 1
# magic, version, flags, nr_modules, modlist, cmdline, rsdp, memmap, memmap_entries, reserved
HVM_START_INFO: Final = Struct("<IIIIQQQQII")
HVM_MODULE: Final = Struct("<QQQQ")  # paddr, size, cmdline_paddr, reserved
HVM_MEMMAP_ENTRY: Final = Struct("<QQII")  # addr, size, type, reserved

_E820_ENTRY: Final = Struct("<QQI")
_E820_OFFSET: Final = 0x2D0
_SETUP_HEADER_OFFSET: Final = 0x1F1
_TYPE_OF_LOADER_UNKNOWN: Final = 0xFF
_KASLR_FLAG: Final = 1 << 1


class E820Entry(NamedTuple):
    """One line of the memory map."""

    gpa: int
    size_bytes: int
    kind: int


class BootData(NamedTuple):
    """Where other boot data is in guest memory; 0 means that there is none."""

    cmdline_gpa: int
    rsdp_gpa: int
    initrd_gpa: int
    initrd_bytes: int
    setup_data_gpa: int


def build_zero_page(setup_header: bytes, e820: Sequence[E820Entry], data: BootData) -> bytes:
    """Return the zero page.

    ``setup_header`` is that of the bzImage, or empty for a ``vmlinux``, which gets a new one.
    The other bytes of the page must be zero (boot.rst, 64-bit boot protocol).
    """
    if len(e820) > E820_MAX_ENTRIES:
        raise ValueError(f"{len(e820)} e820 entries, the zero page holds {E820_MAX_ENTRIES}")
    page = bytearray(ZERO_PAGE_BYTES)
    header = setup_header or _fresh_setup_header()
    page[_SETUP_HEADER_OFFSET : _SETUP_HEADER_OFFSET + len(header)] = header

    pack_into("<Q", page, 0x070, data.rsdp_gpa)
    page[0x1E8] = len(e820)
    for index, entry in enumerate(e820):
        _E820_ENTRY.pack_into(page, _E820_OFFSET + index * _E820_ENTRY.size, *entry)

    page[0x210] = _TYPE_OF_LOADER_UNKNOWN
    # Only the code that unpacks a kernel may set this flag, and the kernel does not check it.
    page[0x211] &= ~_KASLR_FLAG
    pack_into("<II", page, 0x218, data.initrd_gpa & 0xFFFF_FFFF, data.initrd_bytes & 0xFFFF_FFFF)
    pack_into("<II", page, 0x0C0, data.initrd_gpa >> 32, data.initrd_bytes >> 32)
    pack_into("<I", page, 0x228, data.cmdline_gpa & 0xFFFF_FFFF)
    pack_into("<I", page, 0x0C8, data.cmdline_gpa >> 32)
    pack_into("<Q", page, 0x250, data.setup_data_gpa)
    return bytes(page)


def _fresh_setup_header() -> bytes:
    """Return the setup header for a ``vmlinux``, which has none: that of a current kernel."""
    page = bytearray(0x268)
    pack_into("<H", page, 0x1FE, 0xAA55)
    page[0x202:0x206] = b"HdrS"
    pack_into("<H", page, 0x206, 0x020F)
    page[0x211] = 1  # LOADED_HIGH
    pack_into("<I", page, 0x22C, 0x7FFF_FFFF)  # initrd_addr_max
    pack_into("<I", page, 0x230, 0x20_0000)  # kernel_alignment
    pack_into("<H", page, 0x236, 1)  # xloadflags: XLF_KERNEL_64
    pack_into("<I", page, 0x238, 2047)  # cmdline_size
    return bytes(page[_SETUP_HEADER_OFFSET:])


def build_rng_seed(seed: bytes) -> bytes:
    """Return a setup_data node that seeds the guest's random number generator."""
    if not 32 <= len(seed) <= 256:
        raise ValueError(f"a seed of {len(seed)} bytes, not 32 to 256")
    return SETUP_DATA.pack(0, SETUP_RNG_SEED, len(seed)) + seed


def build_start_info(gpa: int, e820: Sequence[E820Entry], data: BootData) -> bytes:
    """Return PVH's start info for the address ``gpa``, followed by its memory map and module list.

    PVH uses the same memory types as e820.
    """
    memmap_gpa = gpa + HVM_START_INFO.size
    modlist_gpa = memmap_gpa + len(e820) * HVM_MEMMAP_ENTRY.size
    modules = [HVM_MODULE.pack(data.initrd_gpa, data.initrd_bytes, 0, 0)] if data.initrd_gpa else []
    info = HVM_START_INFO.pack(
        HVM_START_MAGIC,
        HVM_START_VERSION,
        0,
        len(modules),
        modlist_gpa if modules else 0,
        data.cmdline_gpa,
        data.rsdp_gpa,
        memmap_gpa,
        len(e820),
        0,
    )
    memmap = b"".join(HVM_MEMMAP_ENTRY.pack(*entry, 0) for entry in e820)
    return info + memmap + b"".join(modules)
