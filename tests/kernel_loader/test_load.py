# SPDX-License-Identifier: BSD-3-Clause
"""A boot, planned and carried out: initrd, command line, zero page and PVH start info."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from struct import unpack, unpack_from

import pytest

from kernel_loader.boot_params import (
    HVM_MEMMAP_ENTRY,
    HVM_MODULE,
    HVM_START_INFO,
    BootData,
    E820Entry,
    build_rng_seed,
    build_zero_page,
)
from kernel_loader.image import KernelImage
from kernel_loader.load import (
    PAGE_BYTES,
    BootLayout,
    Initrd,
    encode_cmdline,
    load_linux,
    open_initrd,
    plan_boot,
)
from sys_util.errors import ConfigError
from sys_util.guest_memory import GuestMemory
from tests.kernel_loader.images import (
    COMPRESSORS,
    ENTRY,
    LINUX_NOTE,
    MIB,
    PVH_ENTRY,
    PVH_NOTE,
    TEXT_GPA,
    Elf,
    Load,
    bzimage,
    open_kernel,
    write,
)
from tests.support.huge_pages import HOST_MAKES_HUGE_PAGES, huge_kib

pytestmark = pytest.mark.usefixtures("steady_fds")

SEED = bytes(range(64))
RSDP = 0xE_0000
LAYOUT = BootLayout(
    zero_page_gpa=0x7000,
    start_info_gpa=0x6000,
    start_info_max_bytes=0x1000,
    cmdline_gpa=0x2_0000,
    cmdline_max_bytes=0x800,
    setup_data_gpa=0x2_0800,
    setup_data_max_bytes=0x1000,
    low_end=0x10_0000,
)
E820 = (
    E820Entry(0, 0xA_0000, 1),
    E820Entry(0xA_0000, 0x6_0000, 2),
    E820Entry(MIB, 31 * MIB, 1),
)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[KernelImage]:
    image = open_kernel(write(tmp_path, Elf(notes=LINUX_NOTE + PVH_NOTE).build()))
    yield image
    image.close()


@pytest.fixture
def pvh_kernel(tmp_path: Path) -> Iterator[KernelImage]:
    image = open_kernel(write(tmp_path, Elf(notes=PVH_NOTE).build(), "pvh"))
    yield image
    image.close()


def initrd_of(directory: Path, content: bytes) -> Initrd:
    return open_initrd(write(directory, content, "initrd"))


def sparse_initrd(directory: Path, size_bytes: int) -> Initrd:
    path = write(directory, b"", "initrd")
    os.truncate(path, size_bytes)
    return open_initrd(path)


def test_load_linux_vmlinux_fills_the_zero_page(
    tmp_path: Path, ram: GuestMemory, kernel: KernelImage
) -> None:
    content = os.urandom(0x1801)
    initrd = initrd_of(tmp_path, content)
    plan = plan_boot(kernel, initrd, "console=ttyS0 quiet", E820, LAYOUT)
    entry = load_linux(ram, plan, rsdp_gpa=RSDP, seed=SEED)
    initrd.close()

    assert entry == ("linux64", ENTRY, LAYOUT.zero_page_gpa)
    assert ram.read(TEXT_GPA, 0x100) == b"\xf4" * 0x100
    assert ram.read(LAYOUT.cmdline_gpa, 20) == b"console=ttyS0 quiet\0"

    page = ram.read(LAYOUT.zero_page_gpa, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert unpack_from("<H", page, 0x206) == (0x20F,)
    assert page[0x210] == 0xFF
    assert unpack_from("<I", page, 0x228) == (LAYOUT.cmdline_gpa,)
    assert unpack_from("<Q", page, 0x70) == (RSDP,)
    assert page[0x1E8] == len(E820)
    entries = [E820Entry(*unpack_from("<QQI", page, 0x2D0 + 20 * i)) for i in range(len(E820))]
    assert tuple(entries) == E820

    initrd_gpa, initrd_bytes = unpack_from("<II", page, 0x218)
    assert initrd_gpa == 32 * MIB - 0x2000
    assert ram.read(initrd_gpa, initrd_bytes) == content

    (node,) = unpack_from("<Q", page, 0x250)
    assert unpack("<QII", ram.read(node, 16)) == (0, 9, len(SEED))
    assert ram.read(node + 16, len(SEED)) == SEED


def test_load_linux_bzimage_keeps_its_own_setup_header(tmp_path: Path, ram: GuestMemory) -> None:
    packed = COMPRESSORS["zstd"](Elf(notes=LINUX_NOTE).build())
    # The copy must not have the flag for randomized addresses, which only the unpacker may set.
    file = bzimage(packed, patches={0x211: b"\x03"})
    image = open_kernel(write(tmp_path, file))
    plan = plan_boot(image, None, "", E820, LAYOUT)
    load_linux(ram, plan, rsdp_gpa=0, seed=SEED)
    image.close()

    page = ram.read(LAYOUT.zero_page_gpa, 4096)
    assert page[0x1EF] == 0, "the sentinel says that boot_params were copied blindly"
    assert page[0x1F1:0x210] == file[0x1F1:0x210]
    assert page[0x211] == 1
    assert page[0x22C:0x250] == file[0x22C:0x250]
    assert page[0x258:0x26C] == file[0x258:0x26C]
    assert page[0x26C:0x2D0] == bytes(0x64)
    assert unpack_from("<II", page, 0x218) == (0, 0)


def test_load_linux_pvh_fills_the_start_info(
    tmp_path: Path, ram: GuestMemory, pvh_kernel: KernelImage
) -> None:
    initrd = initrd_of(tmp_path, b"i" * 100)
    plan = plan_boot(pvh_kernel, initrd, "x=1", E820, LAYOUT)
    entry = load_linux(ram, plan, rsdp_gpa=RSDP, seed=SEED)
    initrd.close()

    assert entry == ("pvh", PVH_ENTRY, LAYOUT.start_info_gpa)
    info = HVM_START_INFO.unpack(ram.read(LAYOUT.start_info_gpa, HVM_START_INFO.size))
    magic, version, flags, modules, modlist, cmdline, rsdp, memmap, entries, reserved = info
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 1, RSDP)
    assert (entries, reserved) == (len(E820), 0)
    assert ram.read(cmdline, 4) == b"x=1\0"
    listed = list(HVM_MEMMAP_ENTRY.iter_unpack(ram.read(memmap, HVM_MEMMAP_ENTRY.size * entries)))
    assert listed == [(*entry, 0) for entry in E820]
    module_gpa, module_bytes, _, _ = HVM_MODULE.unpack(ram.read(modlist, HVM_MODULE.size))
    assert ram.read(module_gpa, module_bytes) == b"i" * 100


def test_load_linux_pvh_without_initrd_lists_no_module(
    ram: GuestMemory, pvh_kernel: KernelImage
) -> None:
    plan = plan_boot(pvh_kernel, None, "", E820, LAYOUT)
    load_linux(ram, plan, rsdp_gpa=RSDP, seed=SEED)
    info = HVM_START_INFO.unpack(ram.read(LAYOUT.start_info_gpa, HVM_START_INFO.size))
    assert info[3:5] == (0, 0)


def test_load_linux_keeps_no_file_open(tmp_path: Path, ram: GuestMemory) -> None:
    open_fds = len(os.listdir("/proc/self/fd"))
    image = open_kernel(write(tmp_path, Elf().build()))
    plan = plan_boot(image, initrd_of(tmp_path, b"i"), "", E820, LAYOUT)
    load_linux(ram, plan, rsdp_gpa=0, seed=SEED)
    assert len(os.listdir("/proc/self/fd")) == open_fds


@pytest.mark.parametrize(
    ("loads", "size_bytes", "addr_max", "gpa"),
    [
        pytest.param([Load()], 0x1000, 0x7FFF_FFFF, 32 * MIB - 0x1000, id="top-of-memory"),
        pytest.param([Load()], 0x1001, 0x7FFF_FFFF, 32 * MIB - 0x2000, id="page-aligned"),
        pytest.param([Load()], MIB, 24 * MIB - 1, 23 * MIB, id="addr-max"),
        pytest.param([Load()], MIB, 16 * MIB - 1, 15 * MIB, id="below-the-kernel"),
        pytest.param([Load()], 15 * MIB, 0x7FFF_FFFF, 17 * MIB, id="fits-above"),
        pytest.param(
            [Load(size_bytes=12 * MIB)], 8 * MIB, 0x7FFF_FFFF, 8 * MIB, id="only-below-fits"
        ),
        pytest.param(
            [Load(), Load(gpa=30 * MIB)], 4 * MIB, 0x7FFF_FFFF, 26 * MIB, id="between-segments"
        ),
        pytest.param([Load()], 15 * MIB, 16 * MIB - 1, MIB, id="down-to-the-low-end"),
    ],
)
def test_plan_boot_puts_the_initrd_as_high_as_possible(
    tmp_path: Path, loads: list[Load], size_bytes: int, addr_max: int, gpa: int
) -> None:
    image = open_kernel(write(tmp_path, Elf(loads=loads).build()))
    image.initrd_addr_max = addr_max
    initrd = sparse_initrd(tmp_path, size_bytes)
    plan = plan_boot(image, initrd, "", E820, LAYOUT)
    image.close()
    initrd.close()
    assert plan.initrd_gpa == gpa


def test_plan_boot_prefers_memory_below_4_gib_for_the_initrd(
    tmp_path: Path, kernel: KernelImage
) -> None:
    initrd = sparse_initrd(tmp_path, MIB)
    plan = plan_boot(kernel, initrd, "", [*E820, E820Entry(1 << 32, 1 << 30, 1)], LAYOUT)
    initrd.close()
    assert plan.initrd_gpa == 31 * MIB


@pytest.mark.parametrize("size_bytes", [16 * MIB, 32 * MIB, 1 << 40])
def test_plan_boot_initrd_too_large_names_the_sizes(
    tmp_path: Path, kernel: KernelImage, size_bytes: int
) -> None:
    initrd = sparse_initrd(tmp_path, size_bytes)
    reason = f"^initrd .*initrd: {size_bytes:#x} bytes do not fit below 0x80000000 .* 0x1fa0000"
    with pytest.raises(ConfigError, match=reason):
        plan_boot(kernel, initrd, "", E820, LAYOUT)
    initrd.close()


def test_open_initrd_empty_or_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^initrd .*initrd: is empty"):
        initrd_of(tmp_path, b"")
    with pytest.raises(ConfigError, match=r"^initrd .*: is a directory"):
        open_initrd(str(tmp_path))


@pytest.mark.parametrize(
    ("cmdline", "reason"),
    [
        pytest.param("x" * 2048, "0x800 bytes, kernel .* takes at most 0x7ff", id="long"),
        pytest.param("ü" * 1024, "0x800 bytes, kernel .* takes at most 0x7ff", id="long-utf8"),
        pytest.param("a\0b", "a NUL character at 0x1", id="nul"),
        pytest.param("ab\n", "a newline at 0x2", id="newline"),
        pytest.param("ab\udcff", "not UTF-8 at 0x2", id="surrogate"),
    ],
)
def test_plan_boot_bad_command_line_is_refused(
    kernel: KernelImage, cmdline: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^kernel command line: {reason}"):
        plan_boot(kernel, None, cmdline, E820, LAYOUT)


def test_plan_boot_longest_command_line_is_accepted(kernel: KernelImage) -> None:
    assert len(plan_boot(kernel, None, "x" * 2047, E820, LAYOUT).cmdline) == 2047


def test_plan_boot_obeys_the_command_line_limit_of_the_bzimage(tmp_path: Path) -> None:
    packed = COMPRESSORS["gzip"](Elf().build())
    image = open_kernel(write(tmp_path, bzimage(packed, patches={0x238: b"\x10\0\0\0"})))
    with pytest.raises(ConfigError, match=r"0x11 bytes, kernel .* takes at most 0x10"):
        plan_boot(image, None, "x" * 17, E820, LAYOUT)
    image.close()


def test_encode_cmdline_keeps_utf8() -> None:
    assert encode_cmdline("name=ü", 100, "kernel k") == b"name=\xc3\xbc"


def test_zero_page_addresses_above_4_gib_use_the_extended_fields() -> None:
    page = build_zero_page(b"", E820, BootData(0x2_0000, 0, 5 << 32, 6 << 32, 0))
    assert unpack_from("<II", page, 0x0C0) == (5, 6)
    assert unpack_from("<II", page, 0x218) == (0, 0)


def test_zero_page_refuses_more_e820_entries_than_it_holds() -> None:
    with pytest.raises(ValueError, match="129 e820 entries"):
        build_zero_page(b"", E820[:1] * 129, BootData(0, 0, 0, 0, 0))


@pytest.mark.parametrize("size", [31, 257])
def test_rng_seed_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"a seed of {size} bytes"):
        build_rng_seed(bytes(size))


def used_bytes(memory: GuestMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512


def load_with(tmp_path: Path, loads: list[Load], memory: GuestMemory) -> None:
    kernel = open_kernel(write(tmp_path, Elf(loads).build()))
    plan = plan_boot(kernel, None, "", [E820Entry(MIB, 63 * MIB, 1)], LAYOUT)
    load_linux(memory, plan, rsdp_gpa=RSDP, seed=SEED)


def test_small_kernel_takes_no_huge_page(tmp_path: Path) -> None:
    memory = GuestMemory.create([(0, 64 * MIB)])
    load_with(tmp_path, [Load(size_bytes=20 * MIB)], memory)
    assert used_bytes(memory) < MIB
    memory.close()


def test_large_kernel_and_what_it_takes_at_once_get_huge_pages(tmp_path: Path) -> None:
    memory = GuestMemory.create([(0, 64 * MIB)])
    content = os.urandom(3 * MIB)
    loads = [Load(content=content), Load(gpa=TEXT_GPA + 3 * MIB + PAGE_BYTES, content=content)]
    load_with(tmp_path, loads, memory)
    assert memory.read(TEXT_GPA, len(content)) == content
    assert memory.read(TEXT_GPA + 3 * MIB + PAGE_BYTES, len(content)) == content
    if HOST_MAKES_HUGE_PAGES:
        assert 6 * MIB <= huge_kib(os.getpid()) << 10 <= used_bytes(memory) <= 16 * MIB
    memory.close()
