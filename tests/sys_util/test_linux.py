# SPDX-License-Identifier: BSD-3-Clause
"""The wrappers of Linux calls, each tried on the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.keeper import Keeper
from crosvm_py.control.protocol import CONTROL_CODEC, ControlFds
from crosvm_py.vmm.relay import start_relay
from crosvm_py.warden.forge import start_forge
from sys_util import linux
from sys_util.channel import Channel, socket_pair
from sys_util.errors import HostError
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK = 4096


# Descriptors


@pytest.mark.parametrize(
    "keep", [set(), {0}, {0, 1, 2}, {5, 9}, {0, 3, 4, 63}, {63}], ids=lambda keep: str(sorted(keep))
)
def test_close_all_fds_except_keeps_exactly_those(keep: set[int]) -> None:
    out = 200

    def close() -> list[int]:
        for fd in range(64):
            if fd not in (2, 6):
                os.dup2(6, fd)
        linux.close_all_fds_except(keep | {out})
        return [fd for fd in range(64) if is_open(fd)]

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(write_end, out)
            os.dup2(write_end, 6)
            os.write(out, str(close()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with open(read_end) as pipe:
        assert pipe.read() == str(sorted(keep))


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def test_close_all_fds_except_of_a_closed_one_is_no_error() -> None:
    assert in_child(lambda: linux.close_all_fds_except({*range(4096), 5000})) == "None"


# Locks: one process against another


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(BLOCK))
    return path


@pytest.mark.parametrize(
    ("first", "second", "free"),
    [
        (True, True, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ],
)
def test_ofd_lock_excludes_another_process(
    image: Path, first: bool, second: bool, free: bool
) -> None:
    fd = os.open(image, os.O_RDWR)
    assert linux.ofd_lock(fd, exclusive=first)
    answer = in_child(lambda: linux.ofd_lock(os.open(image, os.O_RDWR), exclusive=second))
    assert answer == str(free)
    os.close(fd)


def test_ofd_lock_excludes_another_open_in_the_same_process(image: Path) -> None:
    first, second = (os.open(image, os.O_RDWR) for _ in range(2))
    assert linux.ofd_lock(first, exclusive=True)
    assert not linux.ofd_lock(second, exclusive=True)
    os.close(first)
    assert linux.ofd_lock(second, exclusive=True)
    os.close(second)


def test_ofd_lock_lives_as_long_as_the_last_duplicate(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    linux.ofd_lock(fd, exclusive=True)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        os.read(go_read, 1)
        os._exit(0)
    os.close(fd)
    other = os.open(image, os.O_RDWR)
    assert not linux.ofd_lock(other, exclusive=True)
    os.close(go_write)
    os.waitpid(pid, 0)
    assert linux.ofd_lock(other, exclusive=True)
    for left in (other, go_read):
        os.close(left)


def test_ofd_lock_is_not_lost_when_another_descriptor_is_closed(image: Path) -> None:
    """The older locks of fcntl(2) would be lost."""
    fd = os.open(image, os.O_RDWR)
    linux.ofd_lock(fd, exclusive=True)
    os.close(os.open(image, os.O_RDWR))
    assert in_child(lambda: linux.ofd_lock(os.open(image, os.O_RDWR), exclusive=True)) == "False"
    os.close(fd)


@pytest.mark.parametrize(
    ("flags", "exclusive"), [(os.O_RDONLY, True), (os.O_WRONLY, False)], ids=["write", "read"]
)
def test_ofd_lock_of_the_wrong_kind_raises(image: Path, flags: int, exclusive: bool) -> None:
    fd = os.open(image, flags)
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.ofd_lock(fd, exclusive=exclusive)
    os.close(fd)


# Files


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_fallocate_punches_and_zeroes_without_changing_the_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (4 * BLOCK))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    full = blocks(path)
    keep = linux.FALLOC_FL_KEEP_SIZE
    linux.fallocate(fd, linux.FALLOC_FL_PUNCH_HOLE | keep, BLOCK, 2 * BLOCK)
    os.close(fd)
    assert path.read_bytes() == b"x" * BLOCK + bytes(2 * BLOCK) + b"x" * BLOCK
    assert blocks(path) <= full - 2 * BLOCK


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        (-1, BLOCK, "Invalid argument"),
        (0, 0, "Invalid argument"),
        (0, -1, "Invalid argument"),
        (1 << 62, 1 << 62, "File too large|Invalid argument"),
    ],
)
def test_fallocate_of_nonsense_raises(image: Path, offset: int, length: int, words: str) -> None:
    fd = os.open(image, os.O_RDWR)
    with pytest.raises(OSError, match=words):
        linux.fallocate(fd, linux.FALLOC_FL_KEEP_SIZE, offset, length)
    os.close(fd)


# Processes


def test_process_name_is_cut_at_15_bytes() -> None:
    def rename() -> str:
        linux.set_process_name("crosvm-rng:0-and-more")
        with open("/proc/self/comm") as file:
            return file.read().strip()

    assert in_child(rename) == "crosvm-rng:0-an"


def test_clone_is_a_fork_with_flags() -> None:
    pid = linux.clone(0)
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_clone_with_impossible_flags_raises() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        linux.clone(0x0000_0800 | 0x0001_0000)  # CLONE_SIGHAND and CLONE_THREAD without CLONE_VM


def test_pidfd_send_signal_reaches_the_process_and_only_while_it_lives() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    linux.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        linux.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_prctl_answers_and_raises() -> None:
    assert in_child(lambda: linux.prctl(linux.PR_SET_DUMPABLE, 0)) == "0"
    with pytest.raises(OSError, match="Invalid argument"):
        linux.prctl(0x7FFF_FFFF)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: linux.mount("none", "/nowhere", "tmpfs", 0), id="mount"),
        pytest.param(lambda: linux.umount2("/nowhere", 0), id="umount2"),
        pytest.param(lambda: linux.pivot_root("/nowhere", "/nowhere"), id="pivot_root"),
    ],
)
def test_calls_of_the_jail_name_what_is_missing(call: Callable[[], None]) -> None:
    with pytest.raises((FileNotFoundError, PermissionError), match="/nowhere"):
        call()


def held_capabilities() -> list[str]:
    with open("/proc/self/status") as file:
        lines = [line.split() for line in file if line.startswith("Cap")]
    return [value for name, value in lines if name in ("CapInh:", "CapPrm:", "CapEff:")]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user holds none")
@pytest.mark.parametrize("mask", [0, 1 << 5, 1 << 5 | 1 << 7], ids=["none", "one", "two"])
def test_set_capabilities_leaves_exactly_those(mask: int) -> None:
    def reduce() -> list[str]:
        linux.set_capabilities(mask)
        return held_capabilities()

    assert in_child(reduce) == str(["0" * 16, f"{mask:016x}", f"{mask:016x}"])


def test_set_capabilities_gives_none_back() -> None:
    def gain() -> None:
        linux.set_capabilities(0)
        linux.set_capabilities(1 << 5)

    assert in_child(gain) == "EPERM"


def start_control_process() -> None:
    ours, theirs = socket_pair()
    with ours, theirs:
        Keeper(Channel(ours, CONTROL_CODEC), ControlFds())._one()


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(lambda: start_forge(None, (), 0), id="forge"),
        pytest.param(lambda: start_relay((), sandbox=False), id="relay"),
        pytest.param(start_control_process, id="control-process"),
    ],
)
def test_child_that_cannot_be_watched_is_reaped(
    start: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    held = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises((OSError, HostError)) as refused:
        start()
    assert "Too many open files" in f"{refused.value}{refused.value.__cause__}"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == held
