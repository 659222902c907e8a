# SPDX-License-Identifier: BSD-3-Clause
"""Binding the control socket: what is replaced, what is refused, who may open it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crosvm_py import socket_path
from crosvm_py.socket_path import (
    BoundSocket,
    bind_control_socket,
    is_socket_of_a_vm,
    unlink_if_ours,
)
from sys_util.errors import ConfigError, HostError

Bind = Callable[[Path], BoundSocket]


@pytest.fixture
def bind() -> Iterator[Bind]:
    bound: list[BoundSocket] = []

    def make(path: Path) -> BoundSocket:
        bound.append(bind_control_socket(str(path)))
        return bound[-1]

    yield make
    for each in bound:
        each.close()


def _listen(path: Path, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    sock.listen()
    return sock


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        return client.connect_ex(str(path)) == 0


def test_bind_directory_gets_the_name_of_the_process(bind: Bind, tmp_path: Path) -> None:
    bound = bind(tmp_path)
    assert bound.path == str(tmp_path / f"crosvm-{os.getpid()}.sock")
    assert _connects(Path(bound.path))


@pytest.mark.parametrize("mask", [0, 0o077])
def test_bind_is_for_the_user_alone_and_marked_whatever_the_umask(
    bind: Bind, tmp_path: Path, mask: int
) -> None:
    umask = os.umask(mask)
    try:
        bind(tmp_path / "s")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o1600


@pytest.mark.parametrize(
    ("mode", "is_ours"),
    [
        (stat.S_IFSOCK | 0o1600, True),
        (stat.S_IFSOCK | 0o1777, True),
        (stat.S_IFSOCK | 0o600, False),
        (stat.S_IFDIR | 0o1777, False),
        (stat.S_IFREG | 0o1600, False),
    ],
)
def test_socket_of_a_vm_is_told_by_its_mark(mode: int, is_ours: bool) -> None:
    assert is_socket_of_a_vm(mode) == is_ours


def test_bind_stale_socket_is_taken_over(bind: Bind, tmp_path: Path) -> None:
    _listen(tmp_path / "s", socket.SOCK_SEQPACKET).close()
    assert not _connects(tmp_path / "s")
    bind(tmp_path / "s")
    assert _connects(tmp_path / "s")
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_bind_stale_stream_socket_is_taken_over(bind: Bind, tmp_path: Path) -> None:
    _listen(tmp_path / "s", socket.SOCK_STREAM).close()
    bind(tmp_path / "s")
    assert _connects(tmp_path / "s")


def test_bind_live_socket_is_refused_and_stays(bind: Bind, tmp_path: Path) -> None:
    bind(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"--socket: .*/s: in use, another VM listens"):
        bind(tmp_path / "s")
    assert _connects(tmp_path / "s")


def test_bind_live_socket_with_full_backlog_is_refused(bind: Bind, tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first,
    ):
        sock.bind(str(tmp_path / "s"))
        sock.listen(0)
        first.connect(str(tmp_path / "s"))
        with pytest.raises(ConfigError, match="in use, another VM listens"):
            bind(tmp_path / "s")


def test_bind_live_socket_of_another_kind_is_refused(bind: Bind, tmp_path: Path) -> None:
    with (
        _listen(tmp_path / "s", socket.SOCK_STREAM),
        pytest.raises(ConfigError, match=r"--socket: .*/s: is in use \(Protocol wrong type"),
    ):
        bind(tmp_path / "s")


@pytest.mark.parametrize("content", ["", "precious"])
def test_bind_other_file_is_refused_and_stays(bind: Bind, tmp_path: Path, content: str) -> None:
    (tmp_path / "f").write_text(content)
    with pytest.raises(ConfigError, match=r"--socket: .*/f: exists and is not a socket"):
        bind(tmp_path / "f")
    assert (tmp_path / "f").read_text() == content


def test_bind_dangling_symlink_is_refused(bind: Bind, tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        bind(tmp_path / "l")


def test_bind_too_long_path_is_refused(bind: Bind, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--socket: .*: \d+ bytes, a socket path has 107"):
        bind(tmp_path / ("x" * 108))


def test_bind_missing_directory_is_the_hosts_refusal(bind: Bind, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"bind --socket .*/no/s"):
        bind(tmp_path / "no" / "s")


def test_bind_socket_that_went_live_after_the_first_look_is_put_back(
    bind: Bind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(tmp_path / "s")
    real = socket_path._refuse_if_in_use
    looks = iter([lambda _path, _use: None, real])
    monkeypatch.setattr(socket_path, "_refuse_if_in_use", lambda path, use: next(looks)(path, use))
    with pytest.raises(ConfigError, match="in use, another VM listens"):
        bind(tmp_path / "s")
    assert _connects(tmp_path / "s")
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_unlink_if_ours_leaves_the_file_of_another_vm(bind: Bind, tmp_path: Path) -> None:
    old = bind(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "kept")  # keeps the inode number in use
    new = bind(tmp_path / "s")
    unlink_if_ours(old.path, old.dev, old.ino)
    assert (tmp_path / "s").exists()
    new.unlink()
    assert not (tmp_path / "s").exists()


def test_unlink_if_ours_missing_file_is_no_error(tmp_path: Path) -> None:
    unlink_if_ours(str(tmp_path / "s"), 1, 1)
