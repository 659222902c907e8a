# SPDX-License-Identifier: BSD-3-Clause
"""The process that reads a kernel: its answers, its ends, and answers that are lies."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import closing
from typing import TYPE_CHECKING

import msgpack
import pytest

from crosvm_py.file_parser import process, protocol
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from kernel_loader.image import MAX_UNPACKED_BYTES, ParsedKernel, Segment
from sys_util import linux
from sys_util.errors import (
    ConfigError,
    HostError,
    ProtocolError,
    VmmError,
    describe,
    raise_host_error,
)
from sys_util.guest_memory import GuestMemory
from sys_util.log import get_logger
from sys_util.wire import encode
from tests.kernel_loader.images import (
    COMPRESSORS,
    ENTRY,
    LINUX_NOTE,
    PVH_NOTE,
    RAM_BYTES,
    TEXT_GPA,
    Elf,
    Load,
    bzimage,
    write,
)
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kernel_loader.image import KernelImage
    from kernel_loader.source import FileSource

pytestmark = pytest.mark.usefixtures("steady_fds", "lines")

LOG = get_logger("kernel_loader")
PARSED = ParsedKernel(
    "vmlinux", "linux64", TEXT_GPA, (Segment(TEXT_GPA, 0x100, 0, 0x100),), b"", 2047, 1 << 30, 0
)


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Check after each test that the parser has left no descriptors and no processes."""
    open_fds = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == open_fds
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    return write(tmp_path, Elf().build())


def read(path: str, *words: str, seconds: float = 60.0) -> KernelImage:
    with closing(start_kernel_parser(config_of(*words, path))) as parser:
        return parser.image(seconds)


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, RAM_BYTES)])
    yield memory
    memory.close()


@pytest.mark.parametrize("words", [(), ("--disable-sandbox",)], ids=["jailed", "unconfined"])
@pytest.mark.parametrize("name", ["", *COMPRESSORS])
def test_kernel_is_read_and_placed(
    ram: GuestMemory, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    content = os.urandom(0x1000) * 3
    elf = Elf(loads=[Load(content=content)], notes=LINUX_NOTE + PVH_NOTE).build()
    with closing(
        read(write(tmp_path, bzimage(COMPRESSORS[name](elf)) if name else elf), *words)
    ) as image:
        image.place(ram)
        assert image.kind == (f"bzImage, {name}" if name else "vmlinux")
        assert (image.protocol, image.entry) == ("linux64", ENTRY)
        assert image.setup_header[0x11:0x15] == (b"HdrS" if name else b"")
    assert ram.read(TEXT_GPA, 0x3000) == content


def test_unpacked_kernel_cannot_change_any_more(tmp_path: Path) -> None:
    path = write(tmp_path, bzimage(COMPRESSORS["gzip"](Elf().build())))
    with closing(start_kernel_parser(config_of(path))) as parser:
        fd = os.dup(parser._unpacked_fd)  # as the process had it
        parser.image().close()
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_log_lines_reach_the_log_of_the_vmm(tmp_path: Path, lines: list[str]) -> None:
    path = write(tmp_path, bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(100)))
    read(path).close()
    assert [line for line in lines if "no compression we know" in line]


@pytest.mark.parametrize("name", [b"\xff \xc3", b"new\nline"], ids=["bytes", "newline"])
def test_refusal_names_the_file_whatever_it_is_called(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(tmp_path, os.fsdecode(name))
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == f"kernel {path}: not a kernel: a text that starts with '#!/bin/sh'"


def test_bomb_is_refused(tmp_path: Path) -> None:
    packed = COMPRESSORS["gzip"](bytes(1 << 20))
    claim = (MAX_UNPACKED_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(ConfigError, match=r"kernel .*vmlinux: gzip payload claims 0x40000001"):
        read(write(tmp_path, bzimage(packed[:-4] + claim)))


# An attacker's code in the process.


def act(monkeypatch: pytest.MonkeyPatch, action: Callable[[FileSource, int], object]) -> None:
    """Have the process do this under its filter, instead of reading the file."""

    monkeypatch.setattr("kernel_loader.parse.parse_kernel", action)


def use_null(_source: FileSource, _fd: int) -> None:
    ctypes.string_at(0)


def abort(_source: FileSource, _fd: int) -> None:
    ctypes.CDLL(None).abort()


def leave(_source: FileSource, _fd: int) -> None:
    os._exit(0)


def fork(_source: FileSource, _fd: int) -> None:
    linux.clone(0)  # not by fork(3): newer C libraries block all signals first, denied as well


def use_memory(_source: FileSource, _fd: int) -> None:
    # Not by malloc: where it is refused it tries mprotect, which is denied, in a process that had
    # threads before, as a test run may have.
    try:
        mmap.mmap(-1, 2 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError from error


def fill(source: FileSource, fd: int) -> None:
    try:
        os.pwrite(fd, b"x", MAX_UNPACKED_BYTES)
    except OSError as error:
        raise_host_error("write", source.what, error)


def fail(_source: FileSource, _fd: int) -> None:
    raise KeyError("of our own")


def spin(_source: FileSource, _fd: int) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        pytest.param(use_null, r"crashes the process that reads it \(SIGSEGV\)", id="segfault"),
        pytest.param(abort, r"killed by seccomp: \w+ \(\d+\), policy file_parser", id="abort"),
        pytest.param(leave, r"crashes the process that reads it \(exit status 0\)", id="exit"),
        pytest.param(fork, r"killed by seccomp: clone \(\d+\)", id="fork"),
        pytest.param(use_memory, "needs more memory than reading it may", id="memory"),
    ],
)
def test_end_of_the_process_is_blamed_on_the_file(
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[FileSource, int], object],
    reason: str,
) -> None:
    act(monkeypatch, action)
    with pytest.raises(ConfigError, match=rf"^kernel {kernel}: .*{reason}"):
        read(kernel)


def test_file_larger_than_any_kernel_cannot_be_written(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(monkeypatch, fill)
    with pytest.raises(HostError) as caught:
        read(kernel)
    words = f"write kernel {kernel}: {os.strerror(errno.EFBIG)}"
    assert describe(caught.value).startswith(words)


def test_bug_of_ours_is_told_where_it_is(
    kernel: str, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    act(monkeypatch, fail)
    with pytest.raises(VmmError, match=rf"^kernel {kernel}: .* please report it"):
        read(kernel)
    assert lines[-1] == "KeyError: 'of our own'"


def test_endless_reading_ends_at_the_deadline(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act(monkeypatch, spin)
    with pytest.raises(ConfigError, match=rf"^kernel {kernel}: could not be read in time"):
        read(kernel, seconds=0.1)


@pytest.mark.slow
def test_endless_reading_uses_no_more_than_its_processor_time(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crosvm_py.file_parser.protocol.MAX_PROCESSOR_SECONDS", 1)
    act(monkeypatch, spin)
    with pytest.raises(ConfigError, match=rf"^kernel {kernel}: takes more than .* processor time"):
        read(kernel)


def test_process_ends_with_a_start_that_fails(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act(monkeypatch, spin)
    start_kernel_parser(config_of(kernel)).close()  # _tidy finds no process


# Answers of a process that an attacker has taken over.


def packed(*values: object) -> bytes:
    return msgpack.packb(values)


def parsed(**changes: object) -> bytes:
    fields = PARSED._asdict() | changes
    return packed(protocol.Parsed.TYPE, list(fields.values()))


def segments(*places: tuple[int, int, int, int]) -> bytes:
    return parsed(segments=places)


FILE_BYTES = len(Elf().build())
LIES = {
    "nothing": b"",
    "noise": b"\xc1" * 100,
    "type": packed(99),
    "fields": packed(protocol.Parsed.TYPE),
    "depth": b"\x91" * 5000,
    "large": encode(protocol.Refused("x" * 2000)) + bytes(70_000),
    "reason": packed(protocol.Refused.TYPE, "x" * 5000),
    "errno": packed(protocol.HostFailed.TYPE, "open", "x", 0, ""),
    "kind": parsed(kind="\x1b[2J"),
    "protocol": parsed(protocol="real"),
    "protocol-list": parsed(protocol=[[]]),
    "entry": parsed(entry=-1),
    "no-segments": segments(),
    "many-segments": segments(*[(TEXT_GPA + at, 1, 0, 1) for at in range(257)]),
    "segment-fields": parsed(segments=[[1, 2, 3]]),
    "longer-than-memory": segments((TEXT_GPA, 0x10, 0, 0x20)),
    "behind-the-file": segments((TEXT_GPA, 0x1000, FILE_BYTES - 1, 2)),
    "far-behind-the-file": segments((TEXT_GPA, 0x1000, (1 << 64) - 1, 1)),
    "wraps": segments(((1 << 64) - 0x100, 0x1000, 0, 1)),
    "overlap": segments((TEXT_GPA, 0x1000, 0, 1), (TEXT_GPA + 0xFFF, 0x1000, 0, 1)),
    "order": segments((TEXT_GPA, 0x10, 0, 1), (TEXT_GPA - 0x1000, 0x10, 0, 1)),
    "setup-header": parsed(setup_header=bytes(0xA0)),
    "command-line": parsed(cmdline_max_bytes=-1),
    "initrd": parsed(initrd_addr_max=1 << 32),
    "unpacked": parsed(unpacked_bytes=0x1000),
    "unpacked-too-much": parsed(unpacked_bytes=MAX_UNPACKED_BYTES + 1),
    "line": packed(protocol.Line.TYPE, 0, "m", "x"),
}


@pytest.mark.parametrize("name", LIES)
def test_lie_ends_the_start_with_a_line_that_names_the_file(
    kernel: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(process, "encode", lambda _message: LIES[name])
    with pytest.raises((ProtocolError, ConfigError), match=rf"^kernel {kernel}: \w+"):
        read(kernel)


def test_segments_outside_of_memory_are_found_by_the_vmm(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie = segments((0x1000, 0x100, 0, 0x100))
    monkeypatch.setattr(process, "encode", lambda _message: lie)
    with closing(read(kernel)) as image, pytest.raises(ConfigError, match="reserved area"):
        image.check([(0, 64 << 20)], 1 << 20)


def test_flood_of_lines_is_bounded(
    kernel: str, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def flood(_source: FileSource, _fd: int) -> ParsedKernel:
        for _ in range(2000):
            LOG.warning("line")
        return PARSED

    act(monkeypatch, flood)
    read(kernel).close()
    assert lines.count("line") == protocol.MAX_LINES


def test_words_of_the_process_cannot_move_the_cursor(
    kernel: str, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def move(_source: FileSource, _fd: int) -> ParsedKernel:
        LOG.warning("\x1b[2J")
        return PARSED

    act(monkeypatch, move)
    read(kernel).close()
    assert lines == ["\\x1b[2J"]
