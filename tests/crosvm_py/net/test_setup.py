# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of network cards: what is set up, and the errors when the host refuses."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import pytest

from crosvm_py.config import NetworkSpec
from crosvm_py.kinds.net import open_card
from crosvm_py.net import setup
from crosvm_py.net.setup import open_network
from sys_util import tap
from sys_util.errors import ConfigError, HostError, describe

if TYPE_CHECKING:
    from pathlib import Path

TAP_FLAGS = tap.IFF_TAP | tap.IFF_NO_PI | tap.IFF_VNET_HDR
MAC = bytes.fromhex("525400123456")


class FakeTaps:
    """The kernel's TAPs: each open queue is an eventfd."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.existing = {"tap0": False}  # name -> multi_queue
        self.mtus = {"tap0": 1500}
        self.queues: dict[int, tuple[str, int]] = {}
        self.calls: list[tuple[object, ...]] = []
        self.errors: dict[str, OSError] = {}
        self.uso = False
        for name in ("open_queue", "describe_queue", "set_offloads", "set_header_size"):
            monkeypatch.setattr(tap, name, getattr(self, name))
        monkeypatch.setattr(tap, "Interfaces", lambda: self)
        self._dup = os.dup
        monkeypatch.setattr(os, "dup", self.dup)

    def __enter__(self) -> FakeTaps:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _do(self, name: str, *args: object) -> None:
        self.calls.append((name, *args))
        if name in self.errors:
            raise self.errors[name]

    def open_queue(self, name: str, *, multi_queue: bool) -> tuple[int, str]:
        self._do("open", name, multi_queue)
        if self.existing.get(name, multi_queue) != multi_queue:
            raise OSError(errno.EINVAL, "Invalid argument")
        name = name.replace("%d", "0")
        self.existing[name] = multi_queue
        self.mtus.setdefault(name, 1500)
        return self.add_queue(name), name

    def add_queue(self, name: str, flags: int = TAP_FLAGS) -> int:
        fd = os.eventfd(0)
        self.queues[fd] = (name, flags)
        return fd

    def dup(self, fd: int) -> int:
        copy = self._dup(fd)
        if fd in self.queues:
            self.queues[copy] = self.queues[fd]
        return copy

    def describe_queue(self, fd: int) -> tuple[str, int]:
        os.fstat(fd)
        if fd not in self.queues:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        return self.queues[fd]

    def set_offloads(self, _fd: int, flags: int) -> None:
        if flags & tap.TUN_F_USO4 and not self.uso:
            raise OSError(errno.EINVAL, "Invalid argument")

    def set_header_size(self, _fd: int, size_bytes: int) -> None:
        self._do("header", size_bytes)

    def exists(self, name: str) -> bool:
        return name in self.existing

    def mtu(self, name: str) -> int:
        return self.mtus[name]

    def set_mtu(self, name: str, mtu: int) -> None:
        self._do("mtu", name, mtu)
        self.mtus[name] = mtu

    def set_address(self, name: str, address: bytes, netmask: bytes) -> None:
        self._do("address", name, address, netmask)

    def bring_up(self, name: str) -> None:
        self._do("up", name)


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> FakeTaps:
    monkeypatch.setenv("USER", "ada")
    return FakeTaps(monkeypatch)


def close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def test_named_tap_is_opened_and_brought_up(taps: FakeTaps) -> None:
    taps.mtus["tap0"] = 9000
    network = open_network(NetworkSpec(tap_name="tap0", mac=MAC))
    assert (network.spec.mac, network.spec.mtu, network.spec.pairs) == (MAC, 9000, 1)
    assert network.spec.tap
    assert not network.spec.uso
    assert taps.calls == [("open", "tap0", False), ("header", 12), ("up", "tap0")]
    close(network.fds)


def test_mac_is_made_up_when_none_is_given(taps: FakeTaps) -> None:
    first, second = (open_network(NetworkSpec(tap_name="tap0")) for _ in range(2))
    assert first.spec.mac != second.spec.mac
    assert first.spec.mac[0] & 3 == 2  # local, not multicast
    close(first.fds + second.fds)


def test_new_tap_gets_address_and_mtu(taps: FakeTaps) -> None:
    taps.uso = True
    spec = NetworkSpec(host_ip=b"\x0a\0\0\1", netmask=b"\xff\xff\xff\0", pairs=2, mtu=4000)
    network = open_network(spec)
    assert (network.spec.mtu, network.spec.pairs, network.spec.uso) == (4000, 2, True)
    assert taps.calls == [
        ("open", "crosvm%d", True),
        ("open", "crosvm0", True),
        ("header", 12),
        ("header", 12),
        ("address", "crosvm0", b"\x0a\0\0\1", b"\xff\xff\xff\0"),
        ("mtu", "crosvm0", 4000),
        ("up", "crosvm0"),
    ]
    close(network.fds)


def test_tap_for_several_queues_is_good_for_one(taps: FakeTaps) -> None:
    taps.existing["tap0"] = True
    network = open_network(NetworkSpec(tap_name="tap0"))
    assert taps.calls[:2] == [("open", "tap0", False), ("open", "tap0", True)]
    close(network.fds)


def test_open_taps_are_duplicated(taps: FakeTaps) -> None:
    fds = (taps.add_queue("tap0"), taps.add_queue("tap0"))
    os.set_inheritable(fds[0], True)
    network = open_network(NetworkSpec(tap_fds=fds, pairs=2))
    assert not set(network.fds) & set(fds)
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in network.fds]
    assert not os.get_inheritable(network.fds[0])
    assert not os.get_blocking(network.fds[1])
    close(fds + network.fds)


def test_taps_whose_card_fails_stay_with_their_owner(taps: FakeTaps) -> None:
    fd = taps.add_queue("tap0")
    taps.errors["header"] = OSError(errno.EIO, "Input/output error")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with pytest.raises(HostError, match="set up the TAP"):
            open_network(NetworkSpec(tap_fds=(fd,)))
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_tap_of_a_name_is_made_and_has_the_address_where_that_is_asked_for(taps: FakeTaps) -> None:
    spec = NetworkSpec(tap_name="new", makes=True, host_ip=bytes((10, 0, 0, 1)), netmask=bytes(4))
    network = open_network(spec)
    assert taps.calls[0] == ("open", "new", False)
    assert [call for call in taps.calls if call[0] == "address"] != []
    close(network.fds)
    unnamed = open_network(NetworkSpec(makes=True))
    assert taps.existing.keys() == {"tap0", "new", "crosvm0"}
    close(unnamed.fds)


def test_open_tap_of_another_namespace_is_left_as_it_is(taps: FakeTaps) -> None:
    fd = taps.add_queue("elsewhere")
    network = open_network(NetworkSpec(tap_fds=(fd,), mtu=2000))
    assert network.spec.mtu == 2000
    assert taps.calls == [("header", 12)]
    close((fd, *network.fds))


def test_orders_are_numbered(taps: FakeTaps) -> None:
    orders = [open_card(index, NetworkSpec(tap_name="tap0")) for index in range(2)]
    assert [(order.name, order.kind) for order in orders] == [("net:0", "net"), ("net:1", "net")]
    close(orders[0].fds + orders[1].fds)


@pytest.mark.parametrize(
    ("number", "pairs", "kind", "reason"),
    [
        (errno.EBUSY, 1, ConfigError, "--net: the TAP tap0 is in use by another process"),
        (errno.EPERM, 1, HostError, "ip tuntap add dev tap0 mode tap user ada && ip link set"),
        (errno.EPERM, 2, HostError, "mode tap multi_queue user ada"),
        (errno.EINVAL, 1, ConfigError, "tap0 is not a TAP$"),
        (errno.EINVAL, 2, ConfigError, r"tap0 is not a TAP with 2 queues \(multi_queue\)"),
        (errno.ENODEV, 1, HostError, "/dev/net/tun .*modprobe tun"),
        (errno.EIO, 1, HostError, "--net: open the TAP tap0: Input/output error"),
    ],
)
def test_named_tap_refused_says_what_to_do(
    taps: FakeTaps, number: int, pairs: int, kind: type[Exception], reason: str
) -> None:
    taps.errors["open"] = OSError(number, os.strerror(number))
    with pytest.raises(kind) as caught:
        open_network(NetworkSpec(tap_name="tap0", pairs=pairs))
    assert re.search(reason, describe(caught.value))


def test_named_tap_missing_says_how_to_make_one(taps: FakeTaps) -> None:
    with pytest.raises(
        ConfigError, match=r"there is no TAP tap9 .*tuntap add dev tap9.*--net user"
    ):
        open_network(NetworkSpec(tap_name="tap9"))


def test_new_tap_not_permitted_says_how_to_get_one(taps: FakeTaps) -> None:
    taps.errors["open"] = PermissionError(errno.EPERM, "Operation not permitted")
    with pytest.raises(HostError, match=r"--host-ip: make a TAP .*tap0 mode tap user ada"):
        open_network(
            NetworkSpec(option="--host-ip", host_ip=b"\x0a\0\0\1", netmask=b"\xff\xff\xff\0")
        )


def test_tun_device_not_permitted_says_so(taps: FakeTaps) -> None:
    taps.errors["open"] = PermissionError(errno.EACCES, "Permission denied", tap.TUN_PATH)
    with pytest.raises(HostError, match=r"open /dev/net/tun .*mode 0666"):
        open_network(NetworkSpec(tap_name="tap0"))


@pytest.mark.parametrize(
    ("step", "spec", "reason"),
    [
        ("up", NetworkSpec(tap_name="tap0"), "bring up the TAP tap0 .*ip link set tap0 up"),
        ("mtu", NetworkSpec(tap_name="tap0", mtu=9000), "MTU 9000 .*ip link set tap0 mtu 9000"),
        (
            "address",
            NetworkSpec(host_ip=b"\x0a\0\0\1", netmask=b"\xff\xff\xff\0"),
            "give the TAP crosvm0 its address",
        ),
        ("header", NetworkSpec(tap_name="tap0"), "set up the TAP of --net"),
    ],
)
def test_refused_step_closes_what_was_open(
    taps: FakeTaps, step: str, spec: NetworkSpec, reason: str
) -> None:
    taps.errors[step] = PermissionError(errno.EPERM, "Operation not permitted")
    with pytest.raises(HostError, match=reason):
        open_network(spec)
    for fd in taps.queues:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_fd_that_is_none_is_refused(taps: FakeTaps) -> None:
    with pytest.raises(ConfigError, match="--net: tap-fd=999 is not open"):
        open_network(NetworkSpec(tap_fds=(999,)))


def test_fd_of_a_standard_stream_is_refused(taps: FakeTaps) -> None:
    with pytest.raises(ConfigError, match="--net: tap-fd=0 is a standard stream"):
        open_network(NetworkSpec(tap_fds=(0,)))


def test_fd_that_is_no_tap_is_refused(taps: FakeTaps) -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(ConfigError, match=f"tap-fd={fd} is not a TAP with an"):
        open_network(NetworkSpec(tap_fds=(fd,)))
    os.close(fd)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(tap.IFF_TUN | tap.IFF_NO_PI | tap.IFF_VNET_HDR, id="a TUN"),
        pytest.param(tap.IFF_TAP | tap.IFF_VNET_HDR, id="packet information"),
        pytest.param(tap.IFF_TAP | tap.IFF_NO_PI, id="no header"),
    ],
)
def test_fd_of_another_kind_is_refused(taps: FakeTaps, flags: int) -> None:
    fd = taps.add_queue("tun0", flags)
    with pytest.raises(ConfigError, match=r"\(tun0\) must be a TAP with IFF_NO_PI and IFF_VNET_HD"):
        open_network(NetworkSpec(tap_fds=(fd,)))
    os.close(fd)


def test_fds_of_two_taps_are_refused(taps: FakeTaps) -> None:
    fds = (taps.add_queue("tap0"), taps.add_queue("tap1"))
    with pytest.raises(ConfigError, match="descriptors of different TAPs: tap0 and tap1"):
        open_network(NetworkSpec(tap_fds=fds, pairs=2))
    close(fds)


def test_vhost_net_is_opened_once_for_each_pair(
    taps: FakeTaps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "VHOST_NET", str(tmp_path))
    monkeypatch.setattr(os, "open", lambda path, _flags: taps.add_queue(path))
    network = open_network(
        NetworkSpec(host_ip=b"\x0a\0\0\1", netmask=b"\xff\xff\xff\0", pairs=2, vhost=True)
    )
    assert network.vhosts == 2
    names = [taps.queues[fd][0] for fd in network.fds]
    assert names == ["crosvm0", "crosvm0", str(tmp_path), str(tmp_path)]
    close(network.fds)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/dev/null/vhost-net", "leave vhost-net out"), ("/nonexistent", "modprobe vhost_net")],
)
def test_vhost_net_refused_says_what_to_do(
    taps: FakeTaps, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.setattr(setup, "VHOST_NET", path)
    with pytest.raises(HostError, match=f"--net: open {path} .*{reason}"):
        open_network(NetworkSpec(tap_name="tap0", vhost=True))


@pytest.mark.parametrize(
    ("spec", "opened"),
    [
        (NetworkSpec(tap_name="tap0"), [("open", "tap0", False)]),
        (NetworkSpec(host_ip=b"\n\0\0\1", netmask=b"\xff\0\0\0"), [("open", "crosvm%d", False)]),
        (NetworkSpec(tap_name="tap0", mtu=9000, mac=MAC), [("open", "tap0", False)]),
    ],
)
def test_rehearsal_opens_a_tap_and_configures_nothing(
    taps: FakeTaps, spec: NetworkSpec, opened: list[tuple[object, ...]]
) -> None:
    order = open_card(0, spec, rehearsal=True)
    assert taps.calls == opened
    assert (order.name, order.kind) == ("net:0", "net")
    close(order.fds)


def test_rehearsal_leaves_inherited_descriptors_as_they_are(taps: FakeTaps) -> None:
    fd = taps.add_queue("tap0")
    os.set_inheritable(fd, True)
    os.set_blocking(fd, True)
    order = open_card(0, NetworkSpec(tap_fds=(fd,)), rehearsal=True)
    close(order.fds)
    assert (os.get_inheritable(fd), os.get_blocking(fd)) == (True, True)
    assert taps.calls == []
    os.close(fd)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (NetworkSpec(tap_name="tapZ"), "there is no TAP tapZ"),
        (NetworkSpec(tap_fds=(999_999,)), "tap-fd=999999 is not open"),
        (NetworkSpec(tap_name="tap0", pairs=2), "tap0 is not a TAP with 2 queues"),
    ],
)
def test_rehearsal_meets_the_errors_of_a_run(
    taps: FakeTaps, spec: NetworkSpec, reason: str
) -> None:
    for rehearsal in (False, True):
        with pytest.raises(ConfigError, match=reason):
            open_card(0, spec, rehearsal=rehearsal)
    assert set(taps.existing) == {"tap0"}
