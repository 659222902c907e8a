# SPDX-License-Identifier: BSD-3-Clause
"""The jail of a broker, whose root is one directory: it reaches that directory and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from jail.ids import IdMap, choose
from jail.plan import device_jail
from sys_util import landlock, linux
from tests.support.jailed import in_jail

pytestmark = pytest.mark.root

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one id only")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a directory with a listener, links and a file; another listener is outside it."""
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
        (folder / "absolute").symlink_to(tmp_path / "o")
        yield folder


def owner_of(folder: Path) -> IdMap:
    found = folder.stat()
    return IdMap(found.st_uid, found.st_gid)


def probe(folder: Path, attempt: Callable[[], object], *, landlock: bool = False) -> object:
    return in_jail(attempt, root=str(folder), owner=owner_of(folder), landlock=landlock)


def connect(path: str) -> Callable[[], object]:
    def attempt() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
        return True

    return attempt


@pytest.mark.parametrize("path", ["v_52", "/v_52", "inner/../v_52", "/../v_52"])
def test_listener_in_the_directory_is_reached(folder: Path, path: str) -> None:
    assert probe(folder, connect(path)) is True


@pytest.mark.skipif(not landlock.abi_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        pytest.param(lambda: os.listdir("/"), "Permission denied", id="list"),
        pytest.param(lambda: os.open("/script", os.O_RDONLY), "Permission denied", id="read"),
        pytest.param(lambda: os.unlink("/v_52"), "Permission denied", id="unlink"),
        pytest.param(lambda: os.rename("/v_52", "/v"), "Permission denied", id="rename"),
        pytest.param(lambda: socket.socket(socket.AF_UNIX).bind("/m"), "Permission", id="bind"),
        pytest.param(connect("v_52"), True, id="connect"),
        pytest.param(lambda: bool(os.lstat("v_52")), True, id="look"),
    ],
)
def test_with_landlock_only_sockets_are_left(
    folder: Path, attempt: Callable[[], object], answer: object
) -> None:
    found = probe(folder, attempt, landlock=True)
    assert found == answer or (isinstance(answer, str) and answer in str(found))


def test_directory_is_the_root_and_all_there_is(folder: Path) -> None:
    names = ["absolute", "elsewhere", "inner", "out", "script", "up", "v_52"]
    assert probe(folder, lambda: sorted(os.listdir("/"))) == names
    assert probe(folder, lambda: sorted(os.listdir("/../.."))) == names
    assert probe(folder, lambda: sorted(os.listdir("../.."))) == names
    assert probe(folder, os.getcwd) == "/"


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        pytest.param(lambda: os.listdir("/proc"), "No such file", id="proc"),
        pytest.param(lambda: os.open("/out", os.O_RDONLY), "No such file", id="absolute-link"),
        pytest.param(lambda: os.open("/up", os.O_RDONLY), "No such file", id="relative-link"),
        pytest.param(connect("/elsewhere"), "No such file", id="socket-beside"),
        pytest.param(connect("/absolute"), "No such file", id="socket-by-its-path"),
        pytest.param(connect("/../o"), "No such file", id="socket-above"),
        pytest.param(connect("../o"), "No such file", id="socket-above-where-it-stands"),
        pytest.param(
            lambda: linux.mount("/", "/inner", "", linux.MS_BIND), "not permitted", id="bind-mount"
        ),
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


def test_descriptor_of_the_directory_is_gone(folder: Path) -> None:
    inside = probe(folder, lambda: [fd for fd in range(64) if is_directory(fd)])
    assert inside == []


def is_directory(fd: int) -> bool:
    try:
        os.open(".", os.O_PATH, dir_fd=fd)
    except OSError:
        return False
    return True


def test_directory_with_a_mount_below_it_is_no_obstacle() -> None:
    """An ordinary user could not bind mount such a directory (mount_namespaces(7))."""
    assert in_jail(lambda: os.path.isdir("proc"), root="/", owner=owner_of(Path("/"))) is True


def test_owner_of_the_directory_is_who_connects(folder: Path) -> None:
    (folder / "v_52").chmod(0o600)
    assert probe(folder, connect("/v_52")) is True


@as_root
@pytest.mark.parametrize("owner", [IdMap(0, 0), IdMap(0, 61_000), IdMap(61_000, 0)])
def test_ids_of_the_owner_are_the_hosts_and_no_others(folder: Path, owner: IdMap) -> None:
    uid, gid = owner
    assert uid is not None
    assert gid is not None
    folder.parent.chmod(0o711)
    os.chown(folder, uid, gid)
    folder.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "v_53"))
        listener.listen()
        os.chown(folder / "v_53", uid, gid)
        (folder / "v_53").chmod(0o600)
        assert in_jail(connect("v_53"), root=str(folder), owner=owner) is True
        with listener.accept()[0] as peer:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert credentials[4:] == uid.to_bytes(4, "little") + gid.to_bytes(4, "little")


@as_root
def test_ids_of_root_take_no_map() -> None:
    ids = choose()
    assert ids.of_user(IdMap(0, 0)) == (None, None)
    assert ids.of_user(IdMap(0, 5)).inside() == (None, 1000)
    assert ids.of_user(IdMap(5, 6)) == (5, 6)


@as_root
def test_another_user_cannot_connect_to_what_is_not_for_it() -> None:
    with TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        Path(folder).chmod(0o755)
        listener.bind(f"{folder}/v_52")
        listener.listen()
        answer = in_jail(connect("/v_52"), root=folder, owner=IdMap(61_000, 61_000))
        assert answer == "Permission denied"


def test_plan_names_the_directory() -> None:
    plan = device_jail(
        policy_name="vsock_broker", bpf=b"", keep_fds=[], max_file_bytes=0, root_fd=7
    )
    steps = plan.describe()
    assert steps.index("make the directory of descriptor 7 the root") == 1 + steps.index(
        "pivot into an empty, read-only root"
    )
