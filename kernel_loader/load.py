# SPDX-License-Identifier: BSD-3-Clause
"""Plan a boot before there is a VM, so that it can still be refused; then load guest memory."""

from __future__ import annotations

from kernel_loader.boot_params import (
    E820_RAM,
    BootData,
    E820Entry,
    build_rng_seed,
    build_start_info,
    build_zero_page,
)
from kernel_loader.source import FileSource
from sys_util.errors import ConfigError
from sys_util.guest_memory import HUGE_PAGE_BYTES
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_loader.image import EntryProtocol, KernelImage
    from sys_util.guest_memory import GuestMemory

PAGE_BYTES: Final = 4096

# Linux has 64 bytes of description for each page, and 4 to 6 MiB of other things at that place. We
# take no more than an eighth of memory, nor more time than 32 huge pages take (3 ms).
_PAGE_BYTES_PER_DESCRIPTOR_BYTE: Final = 64
_EARLY_BYTES: Final = 4 << 20
_MAX_EARLY_BYTES: Final = 64 << 20


class BootLayout(NamedTuple):
    """Where in low memory the boot data goes. All of it is below ``low_end``."""

    zero_page_gpa: int
    start_info_gpa: int
    start_info_max_bytes: int
    cmdline_gpa: int
    cmdline_max_bytes: int  # including the NUL
    setup_data_gpa: int
    setup_data_max_bytes: int
    low_end: int  # no kernel segment and no initrd may be below this


class EntryPoint(NamedTuple):
    """How the boot CPU starts. ``boot_data_gpa`` goes to rsi (Linux) or ebx (PVH)."""

    protocol: EntryProtocol
    rip: int
    boot_data_gpa: int


class Initrd:
    """An initial RAM disk that was opened but not read yet. Owns the file."""

    def __init__(self, source: FileSource) -> None:
        self.what = source.what
        self.size_bytes = source.size
        self.source = source

    def place(self, memory: GuestMemory, gpa: int) -> None:
        """Read the file into guest memory."""
        self.source.copy_to(0, memory, gpa, self.size_bytes)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self.source.close()


class BootPlan(NamedTuple):
    """A boot that was checked against the memory map. Only the host can still make it fail."""

    image: KernelImage
    initrd: Initrd | None
    initrd_gpa: int
    cmdline: bytes  # without the NUL
    e820: tuple[E820Entry, ...]
    layout: BootLayout

    def close(self) -> None:
        """Close the files. May be called twice."""
        self.image.close()
        if self.initrd:
            self.initrd.close()

    def keep(self) -> None:
        """Keep the files open to load them again, also when a filter allows us fewer calls."""
        self.image.source.sends = False
        if self.initrd:
            self.initrd.source.sends = False


def open_initrd(path: str, *, follow: bool = True) -> Initrd:
    """Open an initial RAM disk. Without ``follow`` its path must not be a symbolic link.

    Raises:
        ConfigError: it is empty or no regular file.
        HostError: the host refuses to open it.
    """
    return Initrd(FileSource.open("initrd", path, follow=follow))


def plan_boot(
    image: KernelImage,
    initrd: Initrd | None,
    cmdline: str,
    e820: Sequence[E820Entry],
    layout: BootLayout,
) -> BootPlan:
    """Decide where everything goes in guest memory. Call it before there is a VM.

    Raises:
        ConfigError: kernel, initrd or command line do not fit. The message has the sizes.
    """
    ram = [(entry.gpa, entry.size_bytes) for entry in e820 if entry.kind == E820_RAM]
    image.check(ram, layout.low_end)
    initrd_gpa = _initrd_gpa(image, initrd, ram, layout.low_end) if initrd else 0
    encoded = encode_cmdline(
        cmdline, min(image.cmdline_max_bytes, layout.cmdline_max_bytes - 1), image.what
    )
    return BootPlan(image, initrd, initrd_gpa, encoded, tuple(e820), layout)


def load_linux(
    memory: GuestMemory, plan: BootPlan, *, rsdp_gpa: int, seed: bytes, keep: bool = False
) -> EntryPoint:
    """Write kernel, initrd and boot data into guest memory, which is zero; return where to start.

    Unless ``keep`` says that they will be loaded again, close image and initrd afterwards:
    otherwise an unpacked kernel would use memory of the host as long as the guest runs.

    ``seed`` is 32 to 256 random bytes for the guest; ``rsdp_gpa`` 0 means that there is no ACPI.

    Raises:
        ConfigError: a file has become shorter since the plan was made.
        HostError: the host cannot read a file.
    """
    layout = plan.layout
    _make_huge(memory, plan)
    plan.image.place(memory)
    initrd_bytes = 0
    if plan.initrd:
        plan.initrd.place(memory, plan.initrd_gpa)
        initrd_bytes = plan.initrd.size_bytes
    if keep:
        plan.keep()
    else:
        plan.close()
    memory.write(layout.cmdline_gpa, plan.cmdline + b"\0")

    data = BootData(
        layout.cmdline_gpa, rsdp_gpa, plan.initrd_gpa, initrd_bytes, layout.setup_data_gpa
    )
    if plan.image.protocol == "pvh":
        info = build_start_info(layout.start_info_gpa, plan.e820, data)
        _write_bounded(memory, layout.start_info_gpa, info, layout.start_info_max_bytes)
        return EntryPoint("pvh", plan.image.entry, layout.start_info_gpa)
    node = build_rng_seed(seed)
    _write_bounded(memory, layout.setup_data_gpa, node, layout.setup_data_max_bytes)
    memory.write(layout.zero_page_gpa, build_zero_page(plan.image.setup_header, plan.e820, data))
    return EntryPoint(plan.image.protocol, plan.image.entry, layout.zero_page_gpa)


def _make_huge(memory: GuestMemory, plan: BootPlan) -> None:
    """Put huge pages where the boot writes much: where files go, and at the end of memory.

    Nothing is done for a kernel that is smaller than a huge page: it is no Linux.
    """
    places = [(each.gpa, each.gpa + each.file_bytes) for each in plan.image.segments]
    if sum(end - gpa for gpa, end in places) < HUGE_PAGE_BYTES:
        return
    last = memory.boot_regions[-1]
    end = last.gpa + last.size_bytes
    if plan.initrd:
        initrd_end = plan.initrd_gpa + plan.initrd.size_bytes
        places.append((plan.initrd_gpa, initrd_end))
        if end - initrd_end < HUGE_PAGE_BYTES:
            end = plan.initrd_gpa
    places.append((max(end - _early_bytes(memory), last.gpa), end))
    for start, stop in _merge(places):
        memory.make_huge(start, stop - start)


def _early_bytes(memory: GuestMemory) -> int:
    """Return how much Linux takes from the end of memory, or from below an initrd there.

    It puts its page descriptors there, page tables, and the data of each processor.
    """
    total = sum(region.size_bytes for region in memory.boot_regions)
    wanted = total // _PAGE_BYTES_PER_DESCRIPTOR_BYTE + _EARLY_BYTES
    return min(wanted, _MAX_EARLY_BYTES, total // 8)


def _merge(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join places, each (first, end), which overlap or have less than a huge page between them."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(places):
        if merged and start - merged[-1][1] < HUGE_PAGE_BYTES:
            first, last = merged[-1]
            merged[-1] = (first, max(last, end))
        else:
            merged.append((start, end))
    return merged


def encode_cmdline(cmdline: str, max_bytes: int, what: str) -> bytes:
    """Return the kernel command line as the bytes that the guest sees, without the NUL.

    Raises:
        ConfigError: it is too long for the kernel ``what``, or has a character that would end it.
    """
    for character, name in (("\0", "a NUL character"), ("\n", "a newline")):
        if character in cmdline:
            raise ConfigError(f"kernel command line: {name} at {cmdline.index(character):#x}")
    try:
        encoded = cmdline.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"kernel command line: not UTF-8 at {error.start:#x}") from None
    if len(encoded) > max_bytes:
        raise ConfigError(
            f"kernel command line: {len(encoded):#x} bytes, {what} takes at most {max_bytes:#x}"
        )
    return encoded


def _initrd_gpa(
    image: KernelImage, initrd: Initrd, ram: Sequence[tuple[int, int]], low_end: int
) -> int:
    """Return the highest page-aligned address in memory that is free and below initrd_addr_max."""
    for start, length in sorted(ram, reverse=True):
        bottom = max(start, low_end)
        top = min(start + length, image.initrd_addr_max + 1)
        for segment in (*reversed(image.segments), None):
            gpa = (top - initrd.size_bytes) & ~(PAGE_BYTES - 1)
            if gpa < bottom:
                break
            if segment is None or gpa >= segment.end:
                return gpa
            if segment.gpa < top:
                top = segment.gpa
    used = sum(segment.size_bytes for segment in image.segments)
    total = sum(length for _, length in ram)
    raise ConfigError(
        f"{initrd.what}: {initrd.size_bytes:#x} bytes do not fit below "
        f"{image.initrd_addr_max + 1:#x} beside a kernel of {used:#x} bytes "
        f"in {total:#x} bytes of memory"
    )


def _write_bounded(memory: GuestMemory, gpa: int, data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise ValueError(f"{len(data):#x} bytes of boot data at {gpa:#x}, room for {max_bytes:#x}")
    memory.write(gpa, data)
