# SPDX-License-Identifier: BSD-3-Clause
"""Read a kernel file: find out what goes where in guest memory, and how the kernel is started.

This runs in a process of its own (``crosvm_py/file_parser/``), which may only read the file, use
memory and write what it unpacks. The vmm does not trust the result: ``image.py`` checks it.

Which way a kernel starts (``EntryProtocol``):

- An ELF without a PVH note starts in 64-bit mode at ``e_entry`` with the zero page in rsi.
- An ELF with a PVH note starts in 64-bit mode only if it is Linux (see ``elf.py``) and
  ``e_entry`` lies in a segment and is not the PVH entry itself; everything else with such a note
  (Xen test guests, FreeBSD, unikernels: 32-bit code or a virtual address at ``e_entry``) starts
  by PVH. Linux too old to name itself starts by PVH as well, which it also understands.
- A bzImage is unpacked, and the ELF file in it starts as above. If we do not know its compression,
  the bzImage starts at its own 64-bit or 32-bit entry and unpacks itself.
"""

from __future__ import annotations

from kernel_loader.elf import ELFCLASS32, ElfKernel, is_elf, parse_elf
from kernel_loader.image import EntryProtocol, ParsedKernel, Segment, holds
from kernel_loader.source import FileSource, Source
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_loader.bzimage import BzImage

log = get_logger("kernel_loader")

# Where a relocatable bzImage that unpacks itself is put: crosvm's address.
BZIMAGE_GPA: Final = 0x20_0000

# For a file without a setup header, the values of Linux on x86: COMMAND_LINE_SIZE without its NUL,
# and the highest address that a 64-bit kernel accepts for an initrd.
DEFAULT_CMDLINE_MAX_BYTES: Final = 2047
DEFAULT_INITRD_ADDR_MAX: Final = 0x7FFF_FFFF

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


def import_unpacker(source: FileSource) -> None:
    """Import the modules that ``parse_kernel`` will need for this file.

    It cannot import them itself, because by then the process can open no file. Here, outside the
    jail, we only compare magic numbers and add two numbers of a bzImage; ``parse_kernel`` says what
    is wrong with the file.
    """
    head = source.read(0, min(source.size, _HEAD_BYTES))
    if is_elf(head):
        return
    from kernel_loader.bzimage import is_bzimage, payload_place

    if is_bzimage(head):
        from kernel_loader.payload import FORMAT_BYTES, import_format

        at = payload_place(head)
        if at + FORMAT_BYTES <= source.size:
            import_format(source.read(at, FORMAT_BYTES))


def parse_kernel(
    source: FileSource, unpacked_fd: int, bzimage_gpa: int = BZIMAGE_GPA
) -> ParsedKernel:
    """Read a kernel, check it and, if it is compressed, unpack it; ``source`` stays open.

    Args:
        source: the kernel.
        unpacked_fd: an empty file, to which the unpacked kernel is written; the caller owns it.
        bzimage_gpa: where a bzImage goes that unpacks itself.

    Raises:
        ConfigError: the file is no kernel for this machine, or is damaged.
        HostError: the host refuses to read it.
    """
    head = source.read(0, min(source.size, _HEAD_BYTES))
    if is_elf(head):
        return _of_elf("vmlinux", parse_elf(source))
    # Not imported before, so that a start from an ELF file is fast.
    from kernel_loader.bzimage import is_bzimage

    if is_bzimage(head):
        return _parse_bzimage(source, unpacked_fd, bzimage_gpa)
    raise ConfigError(f"{source.what}: {_describe_unknown(head)}")


def _parse_bzimage(source: FileSource, unpacked_fd: int, gpa: int) -> ParsedKernel:
    from kernel_loader.bzimage import parse_bzimage
    from kernel_loader.payload import payload_format, unpack_payload

    bzimage = parse_bzimage(source)
    if bzimage.payload_bytes == 0 or bzimage.is_64bit is False:
        log.info("%s: a 32-bit or old kernel, unpacks itself in the guest", source.what)
        return _in_guest(bzimage, gpa)

    payload = bytearray(bzimage.payload_bytes)
    source.read_into(bzimage.payload_offset, memoryview(payload))
    kind = payload_format(bytes(payload[:8]))
    if not kind:
        log.info(
            "%s: payload starts with %s, no compression we know: unpacks itself in the guest",
            source.what,
            payload[:6].hex(" "),
        )
        return _in_guest(bzimage, gpa)

    size = unpack_payload(source.what, memoryview(payload), unpacked_fd)
    inner = FileSource(f"{source.what} ({kind} payload)", unpacked_fd, size)
    if bzimage.is_64bit is None and _is_32bit(inner):
        log.info("%s: a 32-bit kernel, unpacks itself in the guest", source.what)
        return _in_guest(bzimage, gpa)
    parsed = _of_elf(f"bzImage, {kind}", parse_elf(inner), bzimage)
    return parsed._replace(unpacked_bytes=size)


def _is_32bit(source: Source) -> bool:
    return source.size > 4 and source.read(4, 1)[0] == ELFCLASS32


def _of_elf(kind: str, elf: ElfKernel, bzimage: BzImage | None = None) -> ParsedKernel:
    protocol: EntryProtocol = "linux64"
    entry = elf.entry
    if elf.pvh_entry is not None and not _starts_in_64bit_mode(elf):
        protocol, entry = "pvh", elf.pvh_entry
    return _parsed(kind, protocol, entry, elf.segments, bzimage)


def _in_guest(bzimage: BzImage, gpa: int) -> ParsedKernel:
    """Return how to load and start a bzImage that unpacks itself in the guest."""
    segment = bzimage.in_guest_segment(gpa)
    protocol: EntryProtocol = "linux64" if bzimage.is_64bit else "linux32"
    return _parsed("bzImage", protocol, segment.gpa + bzimage.entry_offset, (segment,), bzimage)


def _parsed(
    kind: str,
    protocol: EntryProtocol,
    entry: int,
    segments: Sequence[Segment],
    bzimage: BzImage | None,
) -> ParsedKernel:
    return ParsedKernel(
        kind,
        protocol,
        entry,
        tuple(segments),
        bzimage.setup_header if bzimage else b"",
        bzimage.cmdline_max_bytes if bzimage else DEFAULT_CMDLINE_MAX_BYTES,
        bzimage.initrd_addr_max if bzimage else DEFAULT_INITRD_ADDR_MAX,
        unpacked_bytes=0,
    )


def _starts_in_64bit_mode(elf: ElfKernel) -> bool:
    return elf.is_linux and elf.entry != elf.pvh_entry and holds(elf.segments, elf.entry)


def _describe_unknown(head: bytes) -> str:
    for offset, magic, text in _KNOWN_FILES:
        if head[offset : offset + len(magic)] == magic:
            return text
    line = head.splitlines()[0][:40]
    if line.strip() and all(0x20 <= byte < 0x7F or byte == 0x09 for byte in line):
        return f"not a kernel: a text that starts with {line.decode('ascii')!r}"
    return f"not a kernel: starts with the bytes {head[:8].hex(' ')}"
