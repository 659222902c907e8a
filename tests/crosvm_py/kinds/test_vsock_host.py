# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of vsock: what is refused before the start, and what is left afterwards."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crosvm_py.kinds import vsock_host as vsock_setup
from crosvm_py.kinds.order import NO_CONNECTS, DeviceOrder, unpack_spec
from crosvm_py.kinds.vsock import open_vsock
from crosvm_py.warden import protocol
from devices.virtio.vsock.common import VsockSpec
from sys_util.errors import ConfigError, HostError, UsageError, VmmError
from sys_util.vhost import Vhost
from sys_util.wire import encode
from tests.support.command_line import config_of

pytestmark = pytest.mark.usefixtures("steady_fds")

Prepare = Callable[..., DeviceOrder]


@pytest.fixture
def prepare(tmp_path: Path) -> Iterator[Prepare]:
    made: list[DeviceOrder] = []

    def call(path: str | Path | None = None) -> DeviceOrder:
        made.append(open_vsock(VsockSpec(3, str(path or tmp_path / "v"))))
        return made[-1]

    yield call
    for prepared in made:
        for fd in prepared.fds:
            os.close(fd)
        for bound in prepared.sockets:
            bound.unlink()


def asked(*words: str) -> VsockSpec | None:
    """Return the vsock Spec for these words of a command line."""
    return config_of(*words, "kernel").vsock


@pytest.mark.parametrize(
    ("words", "spec"),
    [
        ([], None),
        (["--vsock", "cid=3"], VsockSpec(3)),
        (["--vsock", "3"], VsockSpec(3)),
        (["--vsock=cid=4294967294"], VsockSpec(0xFFFFFFFE)),
        (["--vsock", "cid=0x10,socket=/run/v"], VsockSpec(16, "/run/v")),
        (["--vsock", "socket=v,cid=5"], VsockSpec(5, "v")),
        (["--cid", "7"], VsockSpec(7)),
    ],
)
def test_option_becomes_a_spec(words: list[str], spec: VsockSpec | None) -> None:
    assert asked(*words) == spec


@pytest.mark.parametrize("cid", ["0", "1", "2", "4294967295", "4294967296", "99999999999999999"])
@pytest.mark.parametrize("option", ["--vsock", "--cid"])
def test_cid_that_cannot_be_a_guests_is_refused(option: str, cid: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}: cid {cid} is not in 3..4294967294"):
        asked(option, cid)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cid"),
        ("cid=", "cid"),
        ("cid=-3", "cid='-3'"),
        ("cid=three", "cid='three'"),
        ("cid=3,cid=4", "given twice"),
        ("socket=/run/v", "cid=N is missing"),
        ("cid=3,port=4", "unknown key 'port'"),
        ("cid=3,socket", "socket needs a value"),
    ],
)
def test_option_that_cannot_be_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        asked("--vsock", text)


def test_empty_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="--vsock: the path of the socket is empty"):
        asked("--vsock", 'cid=3,socket=""')


def test_both_spellings_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="--vsock and --cid exclude each other"):
        asked("--vsock", "3", "--cid", "3")


def test_device_gets_its_two_listeners_and_no_path(prepare: Prepare) -> None:
    order = prepare()
    assert unpack_spec(VsockSpec, order.spec) == VsockSpec(3)
    kinds = []
    for fd in order.fds[:2]:
        with socket.socket(fileno=os.dup(fd)) as sock:
            kinds.append(sock.type)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not os.get_blocking(fd)
    assert kinds == [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]


def test_broker_gets_the_directory_and_the_ids_of_its_owner(
    prepare: Prepare, tmp_path: Path
) -> None:
    order = prepare()
    found = tmp_path.stat()
    assert order.connects == (b"v", found.st_uid, found.st_gid)
    assert os.readlink(f"/proc/self/fd/{order.fds[2]}") == str(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):  # good for paths alone (O_PATH)
        os.listdir(order.fds[2])


def test_directory_is_the_one_that_was_there_at_the_start(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    order = prepare(tmp_path / "d" / "v")
    (tmp_path / "d").rename(tmp_path / "old")
    (tmp_path / "d").mkdir()
    assert os.readlink(f"/proc/self/fd/{order.fds[2]}") == str(tmp_path / "old")


def test_path_of_any_bytes_is_possible(prepare: Prepare, tmp_path: Path) -> None:
    order = prepare(os.fsdecode(bytes(tmp_path) + b"/\xff \xc3\n"))
    assert order.connects.name == b"\xff \xc3\n"
    message = protocol.Spawn(0, order.name, order.kind, order.spec, (), 0, order.connects)
    assert protocol.WARDEN_CODEC.decode(encode(message)) == message


@pytest.mark.parametrize("path", ["v", "./v", "../d/v"])
def test_relative_path_is_possible(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    prepared = prepare(path)
    assert os.readlink(f"/proc/self/fd/{prepared.fds[2]}") == str(tmp_path / "d")
    assert prepared.sockets[0].path == str(tmp_path / "d" / "v")


def test_working_directory_that_is_gone_is_one_line(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    (tmp_path / "d").rmdir()
    with pytest.raises(ConfigError, match="--vsock: v: the working directory was removed; give an"):
        prepare("v")
    assert prepare(tmp_path / "v")


def test_sockets_are_the_users_alone_and_go_away(prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["v", "v.seqpacket"]  # with the mark of a VM's own
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names] == [0o1600] * 2
    for bound in prepared.sockets:
        bound.unlink()
    assert list(tmp_path.iterdir()) == []


def test_stale_sockets_are_replaced(prepare: Prepare, tmp_path: Path) -> None:
    for fd in prepare().fds[:2]:
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    assert prepare()


@pytest.mark.parametrize("name", ["v", "v.seqpacket"])
def test_other_files_are_left_alone(prepare: Prepare, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"--vsock: .*/{name}: exists and is not a socket"):
        prepare()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


def test_socket_of_another_vm_is_left_alone(prepare: Prepare) -> None:
    prepare()
    with pytest.raises(ConfigError, match=r"--vsock: .*/v: in use, another VM listens there"):
        prepare()


def test_directory_is_no_socket(prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--vsock: .*: is a directory"):
        prepare(tmp_path)


@pytest.mark.parametrize(("length", "fits"), [(96, True), (97, False)])
def test_path_leaves_room_for_every_port(
    prepare: Prepare, tmp_path: Path, length: int, fits: bool
) -> None:
    path = f"{tmp_path}/".ljust(length, "x")
    assert len(path) == length
    if fits:
        prepare(path)
        return
    with pytest.raises(ConfigError, match="97 bytes, a socket path has 96"):
        prepare(path)


def test_missing_directory_is_the_hosts_refusal(prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"find the directory of --vsock .*/no"):
        prepare(tmp_path / "no" / "v")


@pytest.mark.parametrize("taken", ["v", "v.seqpacket"])
def test_refusal_leaves_nothing_open(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        open_vsock(VsockSpec(3, str(tmp_path / "v")))
    assert os.listdir("/proc/self/fd") == before


def test_directory_of_everybody_is_warned_about(
    prepare: Prepare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o1777)
    prepare()
    assert "a directory of its own is safer" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("device", "error", "reason"),
    [
        ("/dev/no-such", ConfigError, "no /dev/no-such; load the module .* or give socket=PATH"),
        ("/dev/null", HostError, "claim cid 3 for --vsock /dev/null"),
        ("/dev/null/no", HostError, "open for --vsock /dev/null/no"),
    ],
)
def test_kernel_device_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, error: type[VmmError], reason: str
) -> None:
    monkeypatch.setattr(vsock_setup, "KERNEL_DEVICE", device)
    with pytest.raises(error, match=reason):
        open_vsock(VsockSpec(3))


def test_address_of_another_vm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_vhost: Vhost, _cid: int) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(vsock_setup, "KERNEL_DEVICE", str(tmp_path / "device"))
    monkeypatch.setattr(Vhost, "set_guest_cid", refuse)
    (tmp_path / "device").touch()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError, match="--vsock: cid 9 is in use by another VM"):
        open_vsock(VsockSpec(9))
    assert os.listdir("/proc/self/fd") == before


def test_kernel_device_needs_no_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claimed: list[int] = []
    monkeypatch.setattr(vsock_setup, "KERNEL_DEVICE", str(tmp_path / "device"))
    monkeypatch.setattr(Vhost, "set_guest_cid", lambda _vhost, cid: claimed.append(cid))
    (tmp_path / "device").touch()
    order = open_vsock(VsockSpec(9))
    assert (order.kind, order.connects, order.sockets) == ("vhost-vsock", NO_CONNECTS, ())
    assert claimed == [9]
    os.close(order.fds[0])
