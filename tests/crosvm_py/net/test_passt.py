# SPDX-License-Identifier: BSD-3-Clause
"""Starting passt: its arguments, and the errors when it fails."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from crosvm_py.config import Forward, NetworkSpec
from crosvm_py.net import passt
from crosvm_py.net.setup import open_network, rehearse_network
from sys_util.errors import ConfigError, HostError

if TYPE_CHECKING:
    from pathlib import Path

MAC = bytes.fromhex("525400123456")
DEFAULT_ROUTE = "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n"
POINT_TO_POINT = "tun0 00000000 00000000 0001 0 0 0 00000000 0 0 0\n"
LOCAL_ROUTE = "eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"


def close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def fake_passt(folder: Path, script: str) -> None:
    program = folder / "passt"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(passt, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(passt, "ROUTES", str(tmp_path / "route"))
    monkeypatch.setattr(passt, "ROUTES_6", str(tmp_path / "route6"))
    (tmp_path / "route").write_text(DEFAULT_ROUTE)
    return tmp_path


def test_passt_gets_the_socket_and_the_ports(path: Path) -> None:
    fake_passt(path, f'echo "$@" >{path}/arguments; echo hello >&3')
    forwards = (Forward("tcp", "127.0.0.1", 38080, 80), Forward("udp", "", 38053, 53))
    network = open_network(NetworkSpec(user=True, mtu=65520, mac=MAC, forwards=forwards))
    assert (network.spec.tap, network.spec.mtu) == (False, 65520)
    (fd,) = network.fds
    assert not os.get_blocking(fd)
    with socket.socket(fileno=os.dup(fd)) as ours:
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 4 * 65536
    assert os.read(fd, 100) == b"hello\n"
    assert os.read(fd, 100) == b""  # nobody else has the other end
    os.close(fd)
    assert (path / "arguments").read_text().split() == [
        *("--quiet", "--fd", "3", "--mtu", "65520", "--no-map-gw"),
        *("--tcp-ports", "127.0.0.1/38080:80", "--udp-ports", "38053:53"),
    ]


def test_passt_may_lead_to_the_host_if_asked_to(path: Path) -> None:
    fake_passt(path, f'echo "$@" >{path}/arguments')
    close_all(open_network(NetworkSpec(user=True, mtu=1500, host_loopback=True)).fds)
    assert "--no-map-gw" not in (path / "arguments").read_text()


@pytest.mark.parametrize(
    ("resolv_conf", "routes", "dns"),
    [
        ("nameserver 127.0.0.53\nsearch x\n", LOCAL_ROUTE + DEFAULT_ROUTE, ["192.0.2.1"] * 2),
        ("nameserver ::1\nnameserver 127.0.0.1\n", DEFAULT_ROUTE, ["192.0.2.1"] * 2),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.9\n", DEFAULT_ROUTE, []),
        ("nameserver 192.0.2.9\n", DEFAULT_ROUTE, []),
        ("nameserver\n# 127.0.0.1", DEFAULT_ROUTE, []),
        ("nameserver 127.0.0.1\n", LOCAL_ROUTE, ["10.0.2.2"] * 2),
        ("nameserver 127.0.0.1\n", POINT_TO_POINT, ["10.0.2.2"] * 2),
    ],
)
def test_passt_answers_for_a_resolver_at_the_loopback(
    path: Path, resolv_conf: str, routes: str, dns: list[str]
) -> None:
    fake_passt(path, f'echo "$@" >{path}/arguments')
    (path / "resolv.conf").write_text(resolv_conf)
    (path / "route").write_text(routes)
    close_all(open_network(NetworkSpec(user=True, mtu=1500)).fds)
    words = (path / "arguments").read_text().split()
    assert [words[words.index(it) + 1] for it in ("--dns", "--dns-forward") if it in words] == dns


UNREACHABLE_6 = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 1 0 00200200 lo\n"
LOCAL_6 = f"fe80{'0' * 28} 40 {'0' * 32} 00 {'0' * 32} 00000100 1 0 00000001 eth0\n"
DEFAULT_6 = f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 1 0 00000003 eth0\n"


@pytest.mark.parametrize(
    ("routes", "routes_6", "island"),
    [
        pytest.param(LOCAL_ROUTE + DEFAULT_ROUTE, "", False, id="ipv4"),
        pytest.param(LOCAL_ROUTE, LOCAL_6 + DEFAULT_6 + UNREACHABLE_6, False, id="ipv6"),
        pytest.param("", "", True, id="no-route"),
        pytest.param(LOCAL_ROUTE, LOCAL_6 + UNREACHABLE_6, True, id="local-routes"),
        pytest.param(POINT_TO_POINT, UNREACHABLE_6, True, id="without-a-gateway"),
        pytest.param("Iface Destination\n", "nonsense 00\n", True, id="nonsense"),
    ],
)
def test_passt_gets_addresses_where_the_host_has_none_to_give(
    path: Path, routes: str, routes_6: str, island: bool, lines: list[str]
) -> None:
    fake_passt(path, f'echo "$@" >{path}/arguments')
    (path / "route").write_text(routes)
    (path / "route6").write_text(routes_6)
    close_all(open_network(NetworkSpec(user=True, mtu=1500)).fds)
    words = (path / "arguments").read_text().split()
    names = ("--interface", "--address", "--netmask", "--gateway", "--mac-addr")
    given = [words[words.index(name) + 1] for name in names if name in words]
    assert given == (["lo", "10.0.2.15", "24", "10.0.2.2", "52:55:0a:00:02:02"] if island else [])
    assert [line for line in lines if "no gateway; the guest is 10.0.2.15" in line] == lines
    assert len(lines) == island


def test_passt_that_refuses_is_quoted(path: Path) -> None:
    fake_passt(
        path, "echo 'Failed to send 1 bytes to syslog'; echo 'No routable interface'; exit 1"
    )
    with pytest.raises(ConfigError, match=r"--net: passt: No routable interface$"):
        open_network(NetworkSpec(user=True, mtu=1500))


def test_passt_that_dies_without_a_word(path: Path) -> None:
    fake_passt(path, "kill -9 $$")
    with pytest.raises(ConfigError, match="--net: passt: status -9"):
        open_network(NetworkSpec(user=True, mtu=1500))


def test_passt_that_cannot_be_started(path: Path) -> None:
    (path / "passt").write_bytes(b"\0")
    (path / "passt").chmod(0o755)
    with pytest.raises(HostError, match=r"start .*/passt"):
        open_network(NetworkSpec(user=True, mtu=1500))


def test_passt_missing_says_how_to_get_it(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"user needs passt, which is not installed .apt install"):
        open_network(NetworkSpec(user=True, mtu=1500))


@pytest.mark.parametrize(
    ("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)]
)
def test_forward_of_a_port_in_use_is_refused(
    path: Path, protocol: str, kind: socket.SocketKind
) -> None:
    fake_passt(path, "exit 0")
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        forward = Forward(protocol, "127.0.0.1", port, 80)
        with pytest.raises(HostError, match=f"listen at {protocol} port {port} of 127.0.0.1"):
            passt.start_passt(NetworkSpec(user=True, mtu=1500, forwards=(forward,)))


def test_rehearsal_starts_no_passt_but_checks_its_ports(path: Path) -> None:
    with pytest.raises(ConfigError, match="user needs passt, which is not installed"):
        rehearse_network(NetworkSpec(user=True, mtu=1500))
    fake_passt(path, f"touch {path}/started")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        forwards = (Forward("tcp", "127.0.0.1", port, 80),)
        with pytest.raises(HostError, match=f"listen at tcp port {port} of 127.0.0.1"):
            rehearse_network(NetworkSpec(user=True, mtu=1500, forwards=forwards))
    network = rehearse_network(NetworkSpec(user=True, mtu=1500, forwards=forwards))
    close_all(network.fds)
    assert (network.vhosts, network.spec.tap) == (0, False)
    assert not (path / "started").exists()
