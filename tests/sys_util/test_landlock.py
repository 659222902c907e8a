# SPDX-License-Identifier: BSD-3-Clause
"""Landlock on this kernel: what is forbidden, what stays allowed, and a kernel without Landlock."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from sys_util import landlock, linux
from tests.support.processes import forked, in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ABI = landlock.abi_version()

pytestmark = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")


def forbidden(act: Callable[[], object], *removable_in: Path) -> str:
    """Run ``act`` in a process without files; return what it returned, or its errno."""

    def run() -> object:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.forbid_files(map(str, removable_in))
        return act()

    return in_child(run)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def connect(address: str | tuple[str, int], family: int) -> Callable[[], None]:
    def act() -> None:
        with socket.socket(family) as sock:
            sock.connect(address)

    return act


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda path: os.open(path, os.O_RDONLY), id="read"),
        pytest.param(lambda path: os.open(path, os.O_WRONLY), id="write"),
        pytest.param(lambda path: os.open(f"{path}2", os.O_CREAT | os.O_WRONLY), id="create"),
        pytest.param(lambda path: os.listdir(os.path.dirname(path)), id="list"),
        pytest.param(lambda path: os.listdir("/proc/self/fd"), id="list-proc"),
        pytest.param(os.unlink, id="unlink"),
        pytest.param(lambda path: os.mkdir(f"{path}2"), id="mkdir"),
        pytest.param(lambda path: os.symlink("x", f"{path}2"), id="symlink"),
        pytest.param(lambda path: os.mkfifo(f"{path}2"), id="fifo"),
        pytest.param(lambda path: os.execv("/bin/true", ["true"]), id="exec"),
    ],
)
def test_file_is_out_of_reach(file: Path, act: Callable[[str], object]) -> None:
    assert forbidden(lambda: act(str(file))) == "EACCES"


@pytest.mark.skipif(ABI < 3, reason="before Linux 6.2 it does not know truncate(2)")
def test_file_cannot_be_truncated_by_name(file: Path) -> None:
    assert forbidden(lambda: os.truncate(file, 0)) == "EACCES"


@pytest.mark.skipif(ABI < 4, reason="before Linux 6.7 it does not know TCP")
def test_tcp_is_forbidden() -> None:
    assert forbidden(connect(("127.0.0.1", 9), socket.AF_INET)) == "EACCES"


@pytest.mark.skipif(ABI < 6, reason="before Linux 6.12 it does not know abstract sockets")
def test_abstract_socket_of_somebody_else_is_out_of_reach() -> None:
    name = f"\0crosvm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        assert forbidden(connect(name, socket.AF_UNIX)) == "EPERM"


def test_socket_with_a_name_can_still_be_reached(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert forbidden(connect(path, socket.AF_UNIX)) == "None"


def test_what_is_open_stays_usable(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)

    def act() -> bytes:
        os.pwrite(fd, b"C", 0)
        os.ftruncate(fd, 3)
        return os.pread(fd, 10, 0)

    assert forbidden(act) == "b'Con'"
    os.close(fd)


def test_file_of_a_named_directory_can_be_removed_and_nothing_else(file: Path) -> None:
    def act() -> None:
        os.unlink(file)
        os.mkdir(file)

    assert forbidden(act, file.parent) == "EACCES"
    assert not file.exists()


def test_file_beside_the_named_directory_cannot_be_removed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert forbidden(lambda: os.unlink(file), tmp_path / "other") == "EACCES"
    assert file.exists()


def test_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert forbidden(lambda: None, tmp_path / "none") == "ENOENT"


def test_version_is_returned_and_no_descriptor_stays_open(tmp_path: Path) -> None:
    def act() -> tuple[int, bool]:
        before = os.dup(0)
        os.close(before)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        version = landlock.forbid_files([str(tmp_path)])
        return version, os.dup(0) == before

    assert in_child(act) == str((ABI, True))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_kernel_without_it_is_version_0(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(landlock, "lib", _Lib(-number))
    assert landlock.forbid_files(["/no/such/directory"]) == 0


def test_other_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "lib", _Lib(-errno.ENOMEM))
    with pytest.raises(OSError, match="Cannot allocate"):
        landlock.forbid_files()


@pytest.mark.parametrize(
    ("version", "rights", "words"),
    [
        (1, 13, 1),
        (2, 14, 1),
        (3, 15, 1),
        (4, 15, 2),
        (5, 16, 2),
        (6, 16, 3),
        (99, 16, 3),
    ],
)
def test_kernel_is_asked_for_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, version: int, rights: int, words: int
) -> None:
    lib = _Lib(version)
    monkeypatch.setattr(landlock, "lib", lib)
    assert landlock.forbid_files(alone=True) == version
    assert lib.created == ((1 << rights) - 1, 0b11, words)
    assert lib.restricted


def test_kernel_is_asked_for_all_but_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = _Lib(6)
    monkeypatch.setattr(landlock, "lib", lib)
    landlock.forbid_files(but_opening=True)
    assert lib.created == (0b0011_1100_1111_0001, 0b1, 3)


@pytest.mark.parametrize(("version", "created"), [(0, None), (5, None), (6, (0, 0b10, 3))])
def test_signals_are_kept_inside_without_a_word_about_files(
    monkeypatch: pytest.MonkeyPatch, version: int, created: tuple[int, int, int] | None
) -> None:
    lib = _Lib(version or -errno.ENOSYS)
    monkeypatch.setattr(landlock, "lib", lib)
    assert landlock.keep_signals_inside() == version
    assert lib.created == created


def reached(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    return True


def pause() -> None:
    while True:
        signal.pause()


@pytest.mark.skipif(ABI < 6, reason="before Linux 6.12 it does not know signals")
def test_signal_does_not_leave_the_group_of_processes() -> None:
    def act() -> tuple[bool, ...]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.keep_signals_inside()
        with forked(pause) as child:
            parent = in_child(lambda: reached(os.getppid()))  # a child of it reaches it
            return reached(outside), parent == "True", reached(child), reached(os.getpid())

    with forked(pause) as outside:
        assert in_child(act) == str((False, True, True, True))


def test_opening_and_new_files_stay_allowed_and_nothing_else(file: Path) -> None:
    def errno_of(act: Callable[[], object]) -> int:
        try:
            act()
        except OSError as error:
            return error.errno or 0
        return 0

    def act() -> list[int]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.forbid_files(but_opening=True)
        fd = os.open(file, os.O_RDWR)
        os.ftruncate(fd, 3)
        return [
            errno_of(lambda: os.open(f"{file}2", os.O_CREAT | os.O_WRONLY)),
            errno_of(lambda: os.mkdir(f"{file}3")),
            errno_of(lambda: os.unlink(file)),
            errno_of(lambda: os.execv("/bin/true", ["true"])),
            errno_of(lambda: os.open(f"/proc/{outside}/mem", os.O_RDONLY)),
            errno_of(lambda: os.open("/proc/self/mem", os.O_RDONLY)),
            len(os.listdir(file.parent)),
        ]

    with forked(pause) as outside:
        os.close(os.open(f"/proc/{outside}/mem", os.O_RDONLY))
        expected = [0, *[errno.EACCES] * 4, 0, 2]
        assert in_child(act) == str(expected)
    assert file.read_bytes() == b"con"


@pytest.mark.skipif(ABI < 6, reason="before Linux 6.12 it does not know signals")
def test_process_alone_signals_itself_and_its_children() -> None:
    def act() -> tuple[bool, ...]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.forbid_files(alone=True)
        with forked(pause) as child:
            return reached(os.getppid()), reached(child), reached(os.getpid())

    assert in_child(act) == str((False, True, True))


class _Lib:
    """An older or newer kernel."""

    def __init__(self, abi: int) -> None:
        self._abi = abi
        self.created: tuple[int, int, int] | None = None
        self.restricted = False

    def crosvm_landlock_abi(self) -> int:
        return self._abi

    def crosvm_landlock_create(self, fs: int, _net: int, scoped: int, words: int) -> int:
        self.created = (fs, scoped, words)
        return os.open(os.devnull, os.O_RDONLY)

    def crosvm_landlock_restrict(self, _ruleset: int) -> int:
        self.restricted = True
        return 0
