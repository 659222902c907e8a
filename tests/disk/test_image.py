# SPDX-License-Identifier: BSD-3-Clause
"""Opening an image: what is refused, in which words, and what is never done to the file."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.kinds.block import open_disk
from devices.virtio.block.spec import BlockSpec
from disk.image import open_image
from sys_util.errors import ConfigError, HostError, describe
from tests.support.block_driver import IN, IOERR, BlockDriver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("steady_fds")

SIZE = 64 * 1024
BLKROGET = 0x125E  # linux/fs.h


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\x5a" * SIZE)
    return path


def refuse_open(monkeypatch: pytest.MonkeyPatch, number: int, *, readable: bool) -> None:
    """Stand in for permissions, which root does not feel."""

    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: readable)


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_missing_image_names_option_and_file_and_creates_nothing(
    tmp_path: Path, read_only: bool
) -> None:
    path = tmp_path / "none.img"
    with pytest.raises(ConfigError) as caught:
        open_image(BlockSpec(str(path), read_only=read_only, option="--rwdisk"))
    assert describe(caught.value) == f"--rwdisk {path}: No such file or directory"
    assert not path.exists()


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_directory_is_refused(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(ConfigError, match=r"^--block .*: is a directory$"):
        open_image(BlockSpec(str(tmp_path), read_only=read_only))


@pytest.mark.parametrize(
    ("number", "readable", "reason"),
    [
        pytest.param(errno.EACCES, False, "not readable", id="unreadable"),
        pytest.param(errno.EACCES, True, "not writable", id="unwritable"),
        pytest.param(errno.EROFS, True, "Read-only file system", id="read-only-file-system"),
        pytest.param(errno.ELOOP, True, "symbolic links", id="symbolic-links"),
    ],
)
def test_image_that_cannot_be_opened_is_refused(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int, readable: bool, reason: str
) -> None:
    refuse_open(monkeypatch, number, readable=readable)
    with pytest.raises(ConfigError) as caught:
        open_image(BlockSpec(str(image)))
    assert describe(caught.value).startswith(f"--block {image}")
    assert reason in describe(caught.value)


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_named_pipe_is_refused_without_waiting(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="neither a regular file nor a block device"):
        open_image(BlockSpec(str(path), read_only=read_only))


def test_device_that_is_no_disk_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a regular file nor a block device"):
        open_image(BlockSpec("/dev/null"))


def test_file_without_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--block /proc/cpuinfo: has no size"):
        open_image(BlockSpec("/proc/cpuinfo", read_only=True))


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_read_only_block_device_is_no_writable_disk(
    image: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """Any file stands in for the device, which answers BLKROGET as a read-only loop device does."""

    def is_read_only(_fd: int, request: int, _value: bytes) -> bytes:
        assert request == BLKROGET
        return b"\1\0\0\0"

    monkeypatch.setattr("stat.S_ISBLK", lambda _mode: True)
    monkeypatch.setattr("disk.image.fcntl.ioctl", is_read_only)
    if read_only:
        os.close(open_image(BlockSpec(str(image), read_only=True, lock=False)))
        return
    with pytest.raises(ConfigError, match="the block device is read-only; ro uses it so"):
        open_image(BlockSpec(str(image), lock=False))


@pytest.mark.parametrize(
    ("disk_id", "reason"),
    [("\udcff", "id is not UTF-8"), ("é" * 11, "id is longer than 20 bytes")],
    ids=["any bytes", "too long"],
)
def test_id_that_the_guest_could_not_read_is_refused_before_the_image_is_opened(
    image: Path, disk_id: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^--block {image}: {reason}"):
        open_disk(0, [BlockSpec(str(image), id=disk_id)], cpus=1)


def test_path_of_any_bytes_is_opened(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.img"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    os.close(open_image(BlockSpec(os.fsdecode(path))))


def test_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(ConfigError) as caught:
            open_image(BlockSpec(str(path)))
    assert describe(caught.value) == f"--block {path}: No such device or address"


@pytest.mark.parametrize(
    ("size", "block_size", "reason"),
    [
        pytest.param(0, 512, "is empty", id="empty"),
        pytest.param(1, 512, "1 bytes is less than one block of 512", id="one-byte"),
        pytest.param(511, 512, "511 bytes is less than one block of 512", id="odd"),
        pytest.param(3584, 4096, "3584 bytes is less than one block of 4096", id="block"),
        pytest.param(4096, 256, "block-size 256 is not a power of two in 512..4096", id="small"),
        pytest.param(4096, 8192, "block-size 8192 is not", id="large"),
        pytest.param(4096, 1536, "block-size 1536 is not", id="no-power-of-two"),
        pytest.param(4096, 0, "block-size 0 is not", id="zero"),
        pytest.param(4096, -512, "block-size -512 is not", id="negative"),
    ],
)
def test_size_that_does_not_fit_is_refused_and_left_alone(
    tmp_path: Path, size: int, block_size: int, reason: str
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=f"--rwroot {path}: {reason}"):
        open_image(BlockSpec(str(path), block_size=block_size, option="--rwroot"))
    assert path.stat().st_size == size


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
@pytest.mark.parametrize(
    ("size", "block_size", "usable"),
    [
        pytest.param(513, 512, 512, id="a-byte"),
        pytest.param(4607, 512, 4096, id="a-byte-less"),
        pytest.param(4608, 4096, 4096, id="a-sector-of-a-block"),
    ],
)
def test_part_of_a_block_at_the_end_is_hidden_and_told(
    tmp_path: Path, lines: list[str], size: int, block_size: int, usable: int, read_only: bool
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\x5a" * size)
    disk = BlockDriver.start(BlockSpec(str(path), block_size=block_size, read_only=read_only))
    reason = f"{size} bytes is not a multiple of {block_size} (block-size)"
    hidden = f"the guest does not see the last {size - usable}"
    assert lines == [f"--block {path}: {reason}: {hidden}"]
    assert disk.device.config()[:8] == (usable // 512).to_bytes(8, "little")
    assert disk.request(IN, usable // 512, into=[512]).status == IOERR
    assert disk.request(IN, usable // 512 - 1, into=[512]).data == b"\x5a" * 512
    disk.close()
    assert path.read_bytes() == b"\x5a" * size


def test_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero byte"):
        open_image(BlockSpec("a\0b"))


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_open_image_is_close_on_exec_with_the_right_access(image: Path, read_only: bool) -> None:
    fd = open_image(BlockSpec(str(image), read_only=read_only))
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    assert access == (os.O_RDONLY if read_only else os.O_RDWR)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(fd)
    assert image.read_bytes() == b"\x5a" * SIZE


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(False, False, id="rw-then-rw"),
        pytest.param(False, True, id="rw-then-ro"),
        pytest.param(True, False, id="ro-then-rw"),
    ],
)
def test_writer_shares_an_image_with_nobody(image: Path, first: bool, second: bool) -> None:
    held = open_image(BlockSpec(str(image), read_only=first))
    with pytest.raises(ConfigError, match=f"^--rwdisk {image}: locked by another process"):
        open_image(BlockSpec(str(image), read_only=second, option="--rwdisk"))
    os.close(held)


def test_readers_share_an_image(image: Path) -> None:
    held = open_image(BlockSpec(str(image), read_only=True))
    os.close(open_image(BlockSpec(str(image), read_only=True)))
    os.close(held)


def test_lock_ends_with_the_last_duplicate_of_the_descriptor(image: Path) -> None:
    held = open_image(BlockSpec(str(image)))
    duplicate = os.dup(held)
    os.close(held)
    with pytest.raises(ConfigError, match="locked by another process"):
        open_image(BlockSpec(str(image)))
    os.close(duplicate)
    os.close(open_image(BlockSpec(str(image))))


def test_lock_false_does_without(image: Path) -> None:
    held = open_image(BlockSpec(str(image)))
    os.close(open_image(BlockSpec(str(image), lock=False)))
    os.close(held)


def test_host_without_locks_is_a_host_error(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, *, exclusive: bool) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("disk.image.ofd_lock", refuse)
    with pytest.raises(HostError, match=r"lock .*disk.img \(lock=false goes without\)"):
        open_image(BlockSpec(str(image)))


def test_refusal_leaves_no_descriptor_behind(tmp_path: Path, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = open_image(BlockSpec(str(image)))
    empty = tmp_path / "empty"
    empty.touch()
    for path in (image, empty, tmp_path):
        with pytest.raises(ConfigError, match="--block"):
            open_image(BlockSpec(str(path)))
    os.close(held)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_reads_leave_the_access_time_alone(image: Path, read_only: bool) -> None:
    os.utime(image, (1, 2))  # relatime (mount(8)) would set one that is older than the last change
    fd = open_image(BlockSpec(str(image), read_only=read_only))
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME
    assert os.pread(fd, SIZE, 0) == b"\x5a" * SIZE
    assert os.fstat(fd).st_atime == 1
    os.close(fd)


def test_image_of_another_user_is_opened_all_the_same(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_NOATIME:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return call(fd, command, argument)

    monkeypatch.setattr("disk.image.fcntl.fcntl", refuse)
    fd = open_image(BlockSpec(str(image)))
    assert not call(fd, fcntl.F_GETFL) & os.O_NOATIME
    os.close(fd)
