# SPDX-License-Identifier: BSD-3-Clause
"""A kernel file, read and checked: what goes where in guest memory, and how it is started.

Which way a kernel starts (``EntryProtocol``):

- An ELF without a PVH note starts in 64-bit mode at ``e_entry`` with the zero page in rsi.
- An ELF with a PVH note starts in 64-bit mode only if it is Linux (see ``elf.py``) and
  ``e_entry`` lies in a segment and is not the PVH entry itself; everything else with such a note
  (Xen test guests, FreeBSD, unikernels: 32-bit code or a virtual address at ``e_entry``) starts
  by PVH. Linux too old to name itself starts by PVH as well, which it also understands.
- A bzImage is unpacked, and the ELF in it starts as above. If its compression is not known, the
  bzImage starts at its own 64-bit or 32-bit entry and unpacks itself.
"""

from __future__ import annotations

from kernel_loader.elf import ELFCLASS32, ElfKernel, Segment, is_elf, parse_elf
from kernel_loader.source import FileSource, MemorySource, Source
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_loader.bzimage import BzImage
    from sys_util.guest_memory import GuestMemory

log = get_logger("kernel_loader")

EntryProtocol: TypeAlias = Literal["linux64", "linux32", "pvh"]

# Where a relocatable bzImage that unpacks itself is put: crosvm's address.
BZIMAGE_GPA: Final = 0x20_0000

# The defaults of Linux on x86 where no setup header says otherwise: COMMAND_LINE_SIZE without
# its NUL, and the highest address that a 64-bit kernel accepts for an initrd.
DEFAULT_CMDLINE_MAX_BYTES: Final = 2047
DEFAULT_INITRD_ADDR_MAX: Final = 0x7FFF_FFFF

# Page tables and protected mode without paging both end here.
MAX_ENTRY: Final = 1 << 32

_HEAD_BYTES: Final = 0x440
_KNOWN_FILES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0x38, b"ARM\x64", "a kernel for aarch64, expected x86-64"),
    (0x30, b"RISCV\0\0\0", "a kernel for riscv, expected x86-64"),
    (0, b"070701", "an initramfs (cpio archive), not a kernel"),
    (0, b"hsqs", "a squashfs image, not a kernel"),
    (0, b"QFI\xfb", "a qcow2 image, not a kernel"),
    (0x438, b"\x53\xef", "an ext2/3/4 image, not a kernel"),
    (0, b"\x1f\x8b", "gzip-compressed data, not a kernel: unpack it first"),
    (0, b"\xfd7zXZ", "xz-compressed data, not a kernel: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data, not a kernel: unpack it first"),
    (0, b"MZ", "a PE program without a Linux setup header, not a kernel"),
)


class KernelImage:
    """A checked kernel that is ready to be copied. Owns the file or the unpacked payload."""

    def __init__(
        self, source: Source, kind: str, elf: ElfKernel, *, bzimage: BzImage | None = None
    ) -> None:
        self.what = source.what
        self.kind = kind
        self.segments: tuple[Segment, ...] = elf.segments
        self.pvh_entry = elf.pvh_entry
        self.protocol: EntryProtocol = "linux64"
        self.entry = elf.entry
        if elf.pvh_entry is not None and not _starts_in_64bit_mode(elf):
            self.protocol, self.entry = "pvh", elf.pvh_entry
        self.setup_header = bzimage.setup_header if bzimage else b""
        self.cmdline_max_bytes = DEFAULT_CMDLINE_MAX_BYTES
        self.initrd_addr_max = DEFAULT_INITRD_ADDR_MAX
        if bzimage:
            self.cmdline_max_bytes = bzimage.cmdline_max_bytes
            self.initrd_addr_max = bzimage.initrd_addr_max
        self._source = source

    @classmethod
    def in_guest(cls, source: Source, bzimage: BzImage, gpa: int) -> KernelImage:
        """Make an image of a bzImage that unpacks itself in the guest."""
        segment = bzimage.in_guest_segment(gpa)
        entry = segment.gpa + bzimage.entry_offset
        elf = ElfKernel((segment,), entry, pvh_entry=None, is_linux=True)
        image = cls(source, "bzImage", elf, bzimage=bzimage)
        image.protocol = "linux64" if bzimage.is_64bit else "linux32"
        return image

    def check(self, ram: Sequence[tuple[int, int]], low_end: int) -> None:
        """Check that the kernel fits into ``ram``, (gpa, bytes) each, and keeps off the low area.

        Raises:
            ConfigError: a segment lies outside memory or below ``low_end``, or the entry is in
                none of them.
        """
        for gpa, size_bytes, _, _ in self.segments:
            where = f"{self.what}: segment {gpa:#x}+{size_bytes:#x}"
            if gpa < low_end:
                raise ConfigError(f"{where} lies in the reserved area below {low_end:#x}")
            if not any(
                start <= gpa and gpa + size_bytes <= start + length for start, length in ram
            ):
                areas = ", ".join(f"{start:#x}+{length:#x}" for start, length in ram)
                raise ConfigError(f"{where} lies outside memory ({areas})")
        if not _holds(self.segments, self.entry):
            raise ConfigError(f"{self.what}: entry {self.entry:#x} lies outside any segment")
        if self.entry >= MAX_ENTRY:
            raise ConfigError(f"{self.what}: entry {self.entry:#x} lies above {MAX_ENTRY:#x}")

    def place(self, memory: GuestMemory) -> None:
        """Copy the segments into guest memory.

        What follows the file's bytes up to the size in memory is not written: fresh guest
        memory is zero, and this runs once, before the first instruction.
        """
        for gpa, _, offset, file_bytes in self.segments:
            if file_bytes:
                self._source.copy_to(offset, memory, gpa, file_bytes)

    def close(self) -> None:
        """Close the file, or free the unpacked payload. May be called twice."""
        self._source.close()


def open_kernel(path: str, bzimage_gpa: int = BZIMAGE_GPA) -> KernelImage:
    """Open, check and, where it is compressed, unpack a kernel.

    Raises:
        ConfigError: the file is no kernel for this machine, or is damaged.
        HostError: the host does not let us read it.
    """
    source = FileSource.open("kernel", path)
    try:
        head = source.read(0, min(source.size, _HEAD_BYTES))
        if is_elf(head):
            return KernelImage(source, "vmlinux", parse_elf(source))
        # Only now: a start from an ELF file is the fast one.
        from kernel_loader.bzimage import is_bzimage

        if is_bzimage(head):
            return _open_bzimage(source, bzimage_gpa)
        raise ConfigError(f"{source.what}: {_describe_unknown(head)}")
    except BaseException:
        source.close()
        raise


def _open_bzimage(source: FileSource, gpa: int) -> KernelImage:
    from kernel_loader.bzimage import parse_bzimage
    from kernel_loader.payload import payload_format, unpack_payload

    bzimage = parse_bzimage(source)
    if bzimage.payload_bytes == 0 or bzimage.is_64bit is False:
        log.info("%s: a 32-bit or old kernel, unpacks itself in the guest", source.what)
        return KernelImage.in_guest(source, bzimage, gpa)

    payload = bytearray(bzimage.payload_bytes)
    source.read_into(bzimage.payload_offset, memoryview(payload))
    kind = payload_format(bytes(payload[:8]))
    if not kind:
        log.info(
            "%s: payload starts with %s, no compression we know: unpacks itself in the guest",
            source.what,
            payload[:6].hex(" "),
        )
        return KernelImage.in_guest(source, bzimage, gpa)

    unpacked = unpack_payload(source.what, memoryview(payload))
    inner = MemorySource(f"{source.what} ({kind} payload)", unpacked.mapping, unpacked.size)
    try:
        if bzimage.is_64bit is None and inner.size > 4 and inner.read(4, 1)[0] == ELFCLASS32:
            inner.close()
            log.info("%s: a 32-bit kernel, unpacks itself in the guest", source.what)
            return KernelImage.in_guest(source, bzimage, gpa)
        image = KernelImage(inner, f"bzImage, {kind}", parse_elf(inner), bzimage=bzimage)
    except BaseException:
        inner.close()
        raise
    source.close()
    return image


def _starts_in_64bit_mode(elf: ElfKernel) -> bool:
    return elf.is_linux and elf.entry != elf.pvh_entry and _holds(elf.segments, elf.entry)


def _holds(segments: Sequence[Segment], address: int) -> bool:
    return any(gpa <= address < gpa + file_bytes for gpa, _, _, file_bytes in segments)


def _describe_unknown(head: bytes) -> str:
    for offset, magic, text in _KNOWN_FILES:
        if head[offset : offset + len(magic)] == magic:
            return text
    line = head.splitlines()[0][:40]
    if line.strip() and all(0x20 <= byte < 0x7F or byte == 0x09 for byte in line):
        return f"not a kernel: a text that starts with {line.decode('ascii')!r}"
    return f"not a kernel: starts with the bytes {head[:8].hex(' ')}"
