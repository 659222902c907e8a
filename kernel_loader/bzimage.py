# SPDX-License-Identifier: BSD-3-Clause
"""The x86 ``bzImage``: its setup header (Documentation/arch/x86/boot.rst) and where its parts are.

A bzImage starts with a boot sector and real-mode setup code, which a VMM skips. Protected-mode code
follows: a small program that unpacks the compressed ``vmlinux`` inside it. Offsets are those of the
specification, from the start of the file.
"""

from __future__ import annotations

from kernel_loader.image import Segment
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kernel_loader.source import Source

SETUP_HEADER_OFFSET: Final = 0x1F1
BOOT_FLAG_OFFSET: Final = 0x1FE
BOOT_FLAG: Final = 0xAA55
HEADER_MAGIC_OFFSET: Final = 0x202
HEADER_MAGIC: Final = b"HdrS"
# struct boot_params reserves space for the header up to this offset.
SETUP_HEADER_LIMIT: Final = 0x290
SECTOR_BYTES: Final = 512
DEFAULT_SETUP_SECTORS: Final = 4

LOADED_HIGH: Final = 1 << 0
XLF_KERNEL_64: Final = 1 << 0
ENTRY_64_OFFSET: Final = 0x200

# cmdline_size came with 2.06, payload_offset with 2.08, pref_address and init_size with 2.10,
# xloadflags with 2.12.
MIN_VERSION: Final = 0x206
PAYLOAD_VERSION: Final = 0x208
INIT_SIZE_VERSION: Final = 0x20A
XLOADFLAGS_VERSION: Final = 0x20C

MAX_KERNEL_ALIGNMENT: Final = 1 << 30


class BzImage(NamedTuple):
    """The fields of a setup header that a 64-bit or 32-bit entry needs."""

    setup_header: bytes  # from SETUP_HEADER_OFFSET on, as long as the header says it is
    version: int
    code_offset: int
    code_bytes: int
    payload_offset: int  # in the file
    payload_bytes: int  # 0: this protocol version has no such field
    is_64bit: bool | None  # None: this protocol version has no such field
    is_relocatable: bool
    kernel_alignment: int
    pref_address: int
    init_size: int
    initrd_addr_max: int
    cmdline_max_bytes: int

    @property
    def entry_offset(self) -> int:
        """The offset of the entry point from the start of the protected-mode code."""
        return ENTRY_64_OFFSET if self.is_64bit else 0

    def in_guest_segment(self, gpa: int) -> Segment:
        """Return where the protected-mode code goes, and how much memory it needs to unpack itself.

        A relocatable kernel goes to ``gpa``, rounded up to the alignment that it demands.
        """
        if not self.is_relocatable and self.pref_address:
            gpa = self.pref_address
        gpa = -(-gpa // self.kernel_alignment) * self.kernel_alignment
        end = max(gpa + self.code_bytes, max(gpa, self.pref_address) + self.init_size)
        return Segment(gpa, end - gpa, self.code_offset, self.code_bytes)


def is_bzimage(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` claims to be a bzImage."""
    return head[HEADER_MAGIC_OFFSET : HEADER_MAGIC_OFFSET + 4] == HEADER_MAGIC and head[
        BOOT_FLAG_OFFSET : BOOT_FLAG_OFFSET + 2
    ] == BOOT_FLAG.to_bytes(2, "little")


def payload_place(head: bytes) -> int:
    """Return the payload's offset in a file that starts with ``head``; check nothing.

    ``parse_bzimage`` checks it later.
    """
    sectors = 1 + (head[0x1F1] or DEFAULT_SETUP_SECTORS)
    return sectors * SECTOR_BYTES + int.from_bytes(head[0x248:0x24C], "little")


def parse_bzimage(source: Source) -> BzImage:
    """Read and check the setup header.

    Raises:
        ConfigError: the file is truncated, too old, or its header contradicts itself.
    """
    what = source.what
    if source.size < SETUP_HEADER_LIMIT:
        raise ConfigError(f"{what}: truncated bzImage, {source.size:#x} bytes")
    file_head = source.read(0, SETUP_HEADER_LIMIT)

    # The second byte of the jump at 0x200 is the distance to the end of the header.
    header_end = HEADER_MAGIC_OFFSET + file_head[0x201]
    head = file_head[: min(header_end, SETUP_HEADER_LIMIT)].ljust(SETUP_HEADER_LIMIT, b"\0")

    def field(offset: int, size: int) -> int:
        return int.from_bytes(head[offset : offset + size], "little")

    version = field(0x206, 2)
    if version < MIN_VERSION:
        raise ConfigError(f"{what}: boot protocol {version:#x} is older than {MIN_VERSION:#x}")
    if not field(0x211, 1) & LOADED_HIGH:
        raise ConfigError(f"{what}: a zImage, which loads below 1 MiB, not a bzImage")

    code_offset = (1 + (field(0x1F1, 1) or DEFAULT_SETUP_SECTORS)) * SECTOR_BYTES
    code_bytes = _code_bytes(source, code_offset, field(0x1F4, 4))
    payload_offset, payload_bytes = 0, 0
    if version >= PAYLOAD_VERSION:
        payload_offset, payload_bytes = code_offset + field(0x248, 4), field(0x24C, 4)
        _check_payload(source, payload_offset, payload_bytes)
    has_init_size = version >= INIT_SIZE_VERSION
    return BzImage(
        setup_header=head[SETUP_HEADER_OFFSET : max(header_end, HEADER_MAGIC_OFFSET)],
        version=version,
        code_offset=code_offset,
        code_bytes=code_bytes,
        payload_offset=payload_offset,
        payload_bytes=payload_bytes,
        is_64bit=bool(field(0x236, 2) & XLF_KERNEL_64) if version >= XLOADFLAGS_VERSION else None,
        is_relocatable=bool(field(0x234, 1)),
        kernel_alignment=_alignment(what, field(0x230, 4)),
        pref_address=field(0x258, 8) if has_init_size else field(0x214, 4),
        init_size=field(0x260, 4) if has_init_size else 0,
        initrd_addr_max=field(0x22C, 4),
        cmdline_max_bytes=field(0x238, 4),
    )


def _code_bytes(source: Source, code_offset: int, paragraphs: int) -> int:
    """Return the size of the protected-mode code. In the file a signature may follow it."""
    available = source.size - code_offset
    wanted = paragraphs * 16
    # The last paragraph may be incomplete.
    if available <= 0 or wanted > available + 15:
        raise ConfigError(
            f"{source.what}: truncated bzImage, the code at {code_offset:#x}+{wanted:#x} "
            f"lies outside the file of {source.size:#x} bytes"
        )
    return min(wanted, available) if wanted else available


def _check_payload(source: Source, offset: int, size_bytes: int) -> None:
    if size_bytes == 0 or offset + size_bytes > source.size:
        raise ConfigError(
            f"{source.what}: truncated bzImage, the payload at {offset:#x}+{size_bytes:#x} "
            f"lies outside the file of {source.size:#x} bytes"
        )


def _alignment(what: str, alignment: int) -> int:
    if alignment == 0:
        return 1
    if alignment & (alignment - 1) or alignment > MAX_KERNEL_ALIGNMENT:
        raise ConfigError(
            f"{what}: kernel alignment {alignment:#x} is no power of two "
            f"up to {MAX_KERNEL_ALIGNMENT:#x}"
        )
    return alignment
