# SPDX-License-Identifier: BSD-3-Clause
"""The jail of a device that sees one directory: what it reaches there, and nothing beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from jail.namespaces import IdMap
from jail.plan import device_jail
from sys_util import landlock, linux
from tests.support.jailed import in_jail

pytestmark = pytest.mark.root


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a directory with a listener, a stream, and files; a secret lies beside it."""
    folder = tmp_path / "sockets"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to("../secret")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as outside:
        listener.bind(str(folder / "v_52"))
        listener.listen()
        outside.bind(str(tmp_path / "o"))
        outside.listen()
        (folder / "elsewhere").symlink_to("../o")
        yield folder


def probe(folder: Path, attempt: Callable[[], object], *, landlock: bool = False) -> object:
    found = folder.stat()
    owner = IdMap(found.st_uid, found.st_gid)
    return in_jail(attempt, directory=str(folder), owner=owner, landlock=landlock)


def connect(path: str) -> Callable[[], object]:
    def attempt() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
        return True

    return attempt


def write(path: str) -> Callable[[], object]:
    return lambda: os.open(path, os.O_CREAT | os.O_WRONLY)


def bind() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("/mine")


def test_listener_in_the_directory_is_reached(folder: Path) -> None:
    assert probe(folder, connect("/v_52")) is True


@pytest.mark.skipif(not landlock.abi_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        pytest.param(lambda: os.listdir("/"), "Permission denied", id="list"),
        pytest.param(lambda: os.open("/script", os.O_RDONLY), "Permission denied", id="read"),
        pytest.param(connect("/v_52"), True, id="connect"),
    ],
)
def test_with_landlock_only_sockets_are_left(
    folder: Path, attempt: Callable[[], object], answer: object
) -> None:
    assert probe(folder, attempt, landlock=True) == answer


def test_directory_is_the_root_and_all_there_is(folder: Path) -> None:
    names = ["elsewhere", "inner", "out", "script", "up", "v_52"]
    assert probe(folder, lambda: sorted(os.listdir("/"))) == names
    assert probe(folder, lambda: sorted(os.listdir("/../.."))) == names
    assert probe(folder, os.getcwd) == "/"


def test_mount_is_read_only_and_runs_nothing(folder: Path) -> None:
    flags = probe(folder, lambda: os.statvfs("/").f_flag)
    wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert isinstance(flags, int)
    assert flags & wanted == wanted


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        pytest.param(lambda: os.listdir("/proc"), "No such file", id="proc"),
        pytest.param(lambda: os.open("/out", os.O_RDONLY), "No such file", id="absolute-link"),
        pytest.param(lambda: os.open("/up", os.O_RDONLY), "No such file", id="relative-link"),
        pytest.param(connect("/elsewhere"), "No such file", id="socket-beside"),
        pytest.param(connect("/../o"), "No such file", id="socket-above"),
        pytest.param(write("/new"), "Read-only file system", id="create"),
        pytest.param(write("/script"), "Read-only file system", id="write"),
        pytest.param(lambda: os.unlink("/v_52"), "Read-only file system", id="unlink"),
        pytest.param(lambda: os.rename("/v_52", "/v"), "Read-only file system", id="rename"),
        pytest.param(lambda: os.mkdir("/inner/more"), "Read-only file system", id="mkdir"),
        pytest.param(lambda: os.chmod("/script", 0o777), "Read-only file system", id="chmod"),
        pytest.param(bind, "Read-only file system", id="bind"),
        pytest.param(lambda: os.execv("/script", ["x"]), "Permission denied", id="exec"),
        pytest.param(
            lambda: linux.mount("", "/", "", linux.MS_REMOUNT | linux.MS_BIND),
            "Operation not permitted",
            id="remount-writable",
        ),
        pytest.param(
            lambda: linux.mount("/", "/inner", "", linux.MS_BIND), "not permitted", id="bind-mount"
        ),
        pytest.param(lambda: linux.umount2("/", linux.MNT_DETACH), "not permitted", id="unmount"),
        pytest.param(lambda: linux.pivot_root("/", "/"), "not permitted", id="pivot"),
        pytest.param(lambda: os.chroot("/inner"), "not permitted", id="chroot"),
        pytest.param(lambda: os.setuid(0), "Invalid|not permitted", id="setuid"),
        pytest.param(lambda: os.kill(2, 9), "No such process", id="kill"),
    ],
)
def test_attempt_from_inside_fails(
    folder: Path, attempt: Callable[[], object], answer: str
) -> None:
    found = probe(folder, attempt)
    assert isinstance(found, str), f"the jail let it happen: {found!r}"
    assert any(part in found for part in answer.split("|")), found


def test_owner_of_the_directory_is_who_connects(folder: Path) -> None:
    (folder / "v_52").chmod(0o600)
    assert probe(folder, connect("/v_52")) is True


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no other id to give away")
def test_another_user_cannot_connect_to_what_is_not_for_it() -> None:
    with TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        Path(folder).chmod(0o755)
        listener.bind(f"{folder}/v_52")
        listener.listen()
        assert in_jail(connect("/v_52"), directory=folder) == "Permission denied"


@pytest.mark.parametrize("hidden", ["v_52", "no-such"])
def test_hidden_socket_cannot_be_reached(folder: Path, hidden: str) -> None:
    found = folder.stat()
    owner = IdMap(found.st_uid, found.st_gid)
    answer = in_jail(connect("/v_52"), directory=str(folder), hidden=hidden, owner=owner)
    assert answer == ("Connection refused" if hidden == "v_52" else True)


def test_plan_names_the_directory() -> None:
    plan = device_jail(
        policy_name="vsock_device", bpf=b"", keep_fds=[], max_file_bytes=0, directory="/run/v"
    )
    assert "pivot into /run/v alone, read-only" in plan.describe()
