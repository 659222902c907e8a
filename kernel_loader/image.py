# SPDX-License-Identifier: BSD-3-Clause
"""Check a kernel that another process has parsed, and copy it into guest memory.

``parse.py`` reads the file in a process of its own, which is not trusted. Each number that it sends
is compared with the file, with guest memory and with the other numbers before it is used.
"""

from __future__ import annotations

from itertools import pairwise

from sys_util.errors import ConfigError, ProtocolError
from sys_util.typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_loader.source import Source
    from sys_util.guest_memory import GuestMemory

EntryProtocol: TypeAlias = Literal["linux64", "linux32", "pvh"]
# The kinds of files: an ELF file, a bzImage that unpacks itself in the guest, and a bzImage that we
# unpack on the host.
FORMATS: Final = ("gzip", "xz", "lzma", "bzip2", "lz4", "zstd")
KINDS: Final = ("vmlinux", "bzImage", *(f"bzImage, {name}" for name in FORMATS))
PROTOCOLS: Final[tuple[EntryProtocol, ...]] = ("linux64", "linux32", "pvh")

# Our page tables map only addresses below this, and protected mode without paging has no others.
MAX_ENTRY: Final = 1 << 32

# How many program headers an ELF file may have: Linux has five or six, FreeBSD a dozen.
MAX_SEGMENTS: Final = 256

# The space in boot_params: from 0x1F1, where the setup header begins, to 0x290.
MAX_SETUP_HEADER_BYTES: Final = 0x290 - 0x1F1

# A kernel with every driver built in, but without debug information, has some 100 MiB.
MAX_UNPACKED_BYTES: Final = 1 << 30


class Segment(NamedTuple):
    """``file_bytes`` at ``offset`` go to ``gpa``; zeros follow up to ``size_bytes``."""

    gpa: int
    size_bytes: int
    offset: int
    file_bytes: int

    @property
    def end(self) -> int:
        """The first address behind the segment."""
        return self.gpa + self.size_bytes


class ParsedKernel(NamedTuple):
    """What ``parse.py`` found in a kernel. Segments are in ascending order and do not overlap.

    ``setup_header`` is that of a bzImage, from its offset 0x1F1 on, or empty. ``unpacked_bytes``
    is the size of the unpacked kernel. The offsets of segments refer to the unpacked kernel, or if
    ``unpacked_bytes`` is 0, to the file.
    """

    kind: str
    protocol: EntryProtocol
    entry: int
    segments: tuple[Segment, ...]
    setup_header: bytes
    cmdline_max_bytes: int
    initrd_addr_max: int
    unpacked_bytes: int


class KernelImage:
    """A kernel that can be checked against guest memory and copied into it. Owns its source."""

    def __init__(self, source: Source, parsed: ParsedKernel) -> None:
        """Take ownership of ``source``, which contains the segments.

        Raises:
            ProtocolError: the segments make no sense, or are not in the source. The caller still
                owns the source then.
        """
        fault = _fault(parsed.segments, source.size)
        if fault:
            raise ProtocolError(fault)
        self.what = source.what
        self.parsed = parsed
        self.kind = parsed.kind
        self.segments = parsed.segments
        self.protocol = parsed.protocol
        self.entry = parsed.entry
        self.setup_header = parsed.setup_header
        self.cmdline_max_bytes = parsed.cmdline_max_bytes
        self.initrd_addr_max = parsed.initrd_addr_max
        self.source = source

    def check(self, ram: Sequence[tuple[int, int]], low_end: int) -> None:
        """Check that the kernel is inside ``ram``, a list of (gpa, bytes), and above ``low_end``.

        Raises:
            ConfigError: a segment is outside memory or below ``low_end``, or the entry is in no
                segment.
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
        if not holds(self.segments, self.entry):
            raise ConfigError(f"{self.what}: entry {self.entry:#x} lies outside any segment")
        if self.entry >= MAX_ENTRY:
            raise ConfigError(f"{self.what}: entry {self.entry:#x} lies above {MAX_ENTRY:#x}")

    def place(self, memory: GuestMemory) -> None:
        """Copy the segments into guest memory.

        The part of a segment that the file does not have must be zero. It need not be written:
        guest memory is zero at first, and this runs once, before the guest starts.
        """
        for gpa, _, offset, file_bytes in self.segments:
            if file_bytes:
                self.source.copy_to(offset, memory, gpa, file_bytes)

    def close(self) -> None:
        """Close the file or free the unpacked kernel. May be called twice."""
        self.source.close()


def holds(segments: Sequence[Segment], address: int) -> bool:
    """Return whether ``address`` is in the part of a segment that comes from the file."""
    return any(gpa <= address < gpa + file_bytes for gpa, _, _, file_bytes in segments)


def _fault(segments: Sequence[Segment], source_bytes: int) -> str:
    """Say what is wrong with the segments of a source, or nothing."""
    if not segments:
        return "no segment"
    for gpa, size_bytes, offset, file_bytes in segments:
        if file_bytes > size_bytes or offset + file_bytes > source_bytes:
            return f"a segment that has {file_bytes:#x} bytes at {offset:#x}"
        if gpa + size_bytes > 1 << 64:
            return f"a segment at {gpa:#x}+{size_bytes:#x}"
    for low, high in pairwise(segments):
        if low.end > high.gpa:
            return f"a segment at {high.gpa:#x} where another one is"
    return ""
