# SPDX-License-Identifier: BSD-3-Clause
"""Real guests on the network: TAPs, user-mode networking, the kernel's datapath; links, pauses."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.e2e.support import BUILTIN, CLOUD, GENERIC_BZIMAGE, GUEST_SECONDS, Kernel, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.support import Vm
    from tests.kvmhost.fixture import Command, KvmHost

MIB: Final = 16
# For a transfer that is still under way after some requests.
LARGE_MIB: Final = 64
LIMITED_MIB: Final = 12
HOST_IP: Final = "10.77.0.1"
TAP: Final = f"host-ip={HOST_IP},netmask=255.255.255.0,mac=52:54:00:77:00:02"
UPLINK_IP: Final = "192.0.2.10"
GATEWAY: Final = "192.0.2.1"
SERVER_IP: Final = "192.0.2.200"

ADDRESS: Final = """
ip link set eth0 up
ip addr add 10.77.0.2/24 dev eth0
"""
# What socat has sent may lie in the guest's buffers still: state 1 is established, 4 waits for the
# acknowledgement of the last byte.
TRANSFER: Final = """
unsent() {{ grep -qE '^ *[0-9]+: [^ ]+ [^ ]+:1389 0[14] ' /proc/net/tcp; }}
until_sent() {{ while unsent; do usleep 50000; done; }}
fact mac cat /sys/class/net/eth0/address
fact mtu cat /sys/class/net/eth0/mtu
fact queues sh -c 'ls /sys/class/net/eth0/queues | wc -l'
fact ping sh -c 'ping -c 3 -s 8000 {host} | grep packets'
socat -u TCP:{host}:5000,retry=9 OPEN:/tmp/blob,creat
fact down sh -c 'sha256sum </tmp/blob'
socat -u OPEN:/tmp/blob TCP:{host}:5001,retry=9
fact up echo done
until_sent
"""
DHCP: Final = """
ip link set eth0 up
cat >/tmp/dhcp <<'END'
[ $1 = bound ] || exit 0
ip addr add $ip/24 dev eth0
ip route add default via $router
echo "nameserver $dns" >/tmp/resolv.conf
END
sed -i '1i #!/bin/sh' /tmp/dhcp
chmod +x /tmp/dhcp
udhcpc -i eth0 -s /tmp/dhcp -q -n -t 8
mount -t tmpfs etc /etc
cp /tmp/resolv.conf /etc/resolv.conf
fact address sh -c 'ip -o -4 addr show eth0'
fact lookup nslookup guest.test
fact loopback socat -u TCP:192.0.2.1:7777,connect-timeout=4 -
"""
# A resolver that knows one address for every name.
RESOLVER: Final = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    query, peer = sock.recvfrom(1500)
    end = query.index(0, 12) + 5
    known = query[end - 4 : end - 2] == b"\\0\\1"
    answer = bytes.fromhex("c00c000100010000003c0004c000024d") if known else b""
    counts = struct.pack(">HHHH", 1, known, 0, 0)
    sock.sendto(query[:2] + b"\\x81\\x80" + counts + query[12:end] + answer, peer)
"""


class Server(NamedTuple):
    """The host's side of a transfer: what it sends, and where it stores what comes back."""

    lab: Lab
    digest: str

    def came_back(self) -> bool:
        """Return whether the guest sent back what it got; the last of it may be on its way."""
        same_size = '[ "$(stat -c %s came)" = "$(stat -c %s blob)" ]'
        wait = f"for _ in $(seq 200); do {same_size} && break; sleep 0.1; done"
        found = self.lab.shell(f"{wait}\nsha256sum <came")
        return found.split()[0] == self.digest


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    yield from serve(lab, MIB)


@pytest.fixture
def large_server(lab: Lab) -> Iterator[Server]:
    yield from serve(lab, LARGE_MIB)


def serve(lab: Lab, size_mib: int) -> Iterator[Server]:
    lab.shell(f"head -c {size_mib}M /dev/urandom >blob")
    digest = lab.shell("sha256sum <blob").split()[0]
    with ExitStack() as stack:
        for words in (
            ["-u", f"OPEN:{lab.folder}/blob", "TCP-LISTEN:5000,reuseaddr,fork"],
            ["-u", "TCP-LISTEN:5001,reuseaddr", f"CREATE:{lab.folder}/came"],
        ):
            stack.enter_context(lab.host.start(["socat", *words]))
        yield Server(lab, digest)


@pytest.fixture
def uplink(kvmhost: KvmHost) -> Iterator[None]:
    """A network for the host itself, which has none, and a resolver at its loopback."""
    kvmhost.shell(
        "ip link add uplink type dummy; ip link set uplink up\n"
        f"ip addr add {UPLINK_IP}/24 dev uplink; ip addr add {SERVER_IP}/24 dev uplink\n"
        f"ip route add default via {GATEWAY} dev uplink src {UPLINK_IP}\n"
        "cp /etc/resolv.conf /tmp/resolv.saved 2>/dev/null || :\n"
        "echo 'nameserver 127.0.0.1' >/etc/resolv.conf; chmod 644 /etc/resolv.conf"
    )
    with kvmhost.start(["python3", "-Ic", RESOLVER]) as resolver:
        resolver.wait_for("ready")
        yield
    kvmhost.shell("ip link del uplink; cp /tmp/resolv.saved /etc/resolv.conf 2>/dev/null || :")


def counters(vm: Vm, host: KvmHost, name: str = "net:0") -> dict[str, int]:
    """Return what a device has counted."""
    found = json.loads(host.run(["crosvm", "devices", "--json", vm.socket]).stdout)
    (device,) = [device for device in found if device["name"] == name]
    numbers: dict[str, int] = device["counters"]
    return numbers


@pytest.mark.parametrize(
    ("kernel", "cpus", "options", "mtu", "queues"),
    [
        pytest.param(BUILTIN, 1, "", 1500, 2, id="builtin"),
        pytest.param(BUILTIN, 2, ",vq-pairs=2,mtu=9000", 9000, 4, id="two-queues-mtu-9000"),
        pytest.param(BUILTIN, 2, ",vq-pairs=2,vhost-net", 1500, 4, id="vhost-net"),
        pytest.param(CLOUD, 2, "", 1500, 2, id="cloud"),
        pytest.param(GENERIC_BZIMAGE, 1, ",mtu=9000", 9000, 2, id="generic-mtu-9000"),
    ],
)
def test_tap_carries_files_both_ways(
    server: Server, kernel: Kernel, cpus: int, options: str, mtu: int, queues: int
) -> None:
    lab = server.lab
    script = ADDRESS + TRANSFER.format(host=HOST_IP) + "fact done echo yes\nread word </dev/ttyS0\n"
    net = ("--net", TAP + options, "-c", str(cpus), "-m", "512")
    with lab.start(*net, kernel=kernel, script=script) as vm:
        vm.wait_for("@done=yes")
        counted = counters(vm, lab.host)
        vm.command.send("go\n")
        facts = vm.finish()
    assert facts["mac"] == "52:54:00:77:00:02"
    assert facts["mtu"] == str(mtu)
    assert facts["queues"] == str(queues)
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in facts["ping"]
    assert facts["down"].split()[0] == server.digest
    assert server.came_back()
    if "vhost" not in options:
        assert counted["rx_large"] > 0
        assert counted["tx_large"] > 0
        assert counted["tx_malformed"] == counted["rx_unusable"] == counted["rx_dropped"] == 0
    assert "crosvm" not in lab.host.shell("ip -br link")  # the TAP went with the VM


@pytest.mark.parametrize("options", ["", ",vhost-net"], ids=["ours", "kernel"])
def test_suspended_transfer_goes_on(large_server: Server, options: str) -> None:
    script = ADDRESS + TRANSFER.format(host=HOST_IP)
    with large_server.lab.start("--net", TAP + options, "-m", "512", script=script) as vm:
        vm.wait_for("@ping=")
        for _ in range(3):
            assert vm.control("suspend").status == 0
            assert vm.control("resume").status == 0
        facts = vm.finish()
    assert facts["down"].split()[0] == large_server.digest
    assert large_server.came_back()


def test_limits_hold_in_both_directions(server: Server) -> None:
    script = f"""{ADDRESS}
now() {{ read up idle </proc/uptime; echo "$up"; }}
fact start now
socat -u TCP:{HOST_IP}:5000,retry=9 - | head -c {LIMITED_MIB}m >/tmp/blob
fact down now
socat -u OPEN:/tmp/blob TCP:{HOST_IP}:5001,retry=9
fact up now
fact done echo yes
read word </dev/ttyS0
"""
    limit = ",bw-size=1m,bw-refill-time=1000"
    with server.lab.start("--net", TAP + limit, "-m", "512", script=script) as vm:
        vm.wait_for("@done=yes")
        told = server.lab.host.run(["crosvm", "limit", "net:0", "bw-size=0", vm.socket]).stdout
        vm.command.send("go\n")
        facts = vm.finish()
    start, down, up = (float(facts[name]) for name in ("start", "down", "up"))
    # The first MiB is what the bucket held; the last ones sent are still in the guest's buffers.
    assert down - start == pytest.approx(LIMITED_MIB - 1, rel=0.1)
    assert LIMITED_MIB - 5 < up - down < (LIMITED_MIB - 1) * 1.1
    assert "bw-size=0,bw-one-time-burst=0,bw-refill-time=1000" in told


@pytest.mark.parametrize("options", ["", ",vhost-net"], ids=["ours", "kernel"])
def test_link_goes_down_and_up_again(lab: Lab, options: str) -> None:
    script = (
        ADDRESS
        + "carrier() { until grep -q $1 /sys/class/net/eth0/carrier; do usleep 50000; done; }\n"
        f"carrier 1\nping -c 1 {HOST_IP} >/dev/null\n"
        "fact first echo up\ncarrier 0\nfact second echo down\ncarrier 1\n"
        f"fact third sh -c 'ping -c 2 {HOST_IP} | grep packets'\n"
    )
    with lab.start("--net", TAP + options, script=script) as vm:
        vm.wait_for("@first=up")
        assert lab.host.run(["crosvm", "link", "net:0", "down", vm.socket]).status == 0
        vm.wait_for("@second=down")
        assert lab.host.run(["crosvm", "link", "net:0", "up", vm.socket]).status == 0
        facts = vm.finish()
    assert "2 packets received" in facts["third"]


@pytest.mark.parametrize("options", ["", ",vhost-net"], ids=["ours", "kernel"])
def test_driver_is_bound_twenty_times(lab: Lab, options: str) -> None:
    script = f"""
cd /sys/bus/virtio/drivers/virtio_net
device=$(ls -d virtio*)
for n in $(seq 20); do echo $device >unbind; echo $device >bind; done
{ADDRESS}
fact ping sh -c 'ping -c 2 {HOST_IP} | grep packets'
fact errors /bin/dmesg -l emerg,alert,crit,err
"""
    with lab.start("--net", TAP + options, script=script) as vm:
        facts = vm.finish()
    assert "2 packets received" in facts["ping"]
    assert facts["errors"] == ""


def test_named_tap_serves_an_ordinary_user(tester_lab: Lab) -> None:
    tester_lab.host.shell(
        "ip tuntap add dev tapA mode tap user tester\n"
        f"ip addr add {HOST_IP}/24 dev tapA; ip link set tapA up"
    )
    script = ADDRESS + f"fact ping sh -c 'ping -c 2 {HOST_IP} | grep packets'\n"
    try:
        with tester_lab.start("--net", "tapA", script=script, end="stay") as vm:
            vm.wait_ready()
            with tester_lab.start("--net", "tap-name=tapA") as other:
                assert other.wait() == 1
            assert "the TAP tapA is in use by another process" in other.log
            assert "2 packets received" in vm.facts()["ping"]
    finally:
        tester_lab.host.shell("ip link del tapA")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("tap-name=tapZ", "there is no TAP tapZ"),
        ("tap-name=lo", "lo is not a TAP"),
        ("tap-fd=77", "tap-fd=77 is not open"),
        (TAP, "ip tuntap add dev tap0"),
    ],
)
def test_tap_that_cannot_be_is_explained(tester_lab: Lab, option: str, reason: str) -> None:
    with tester_lab.start("--net", option) as vm:
        assert vm.wait() == 1
    assert reason in vm.log


@pytest.fixture
def forwarded(tester_lab: Lab) -> Iterator[Command]:
    """A client that tries a forwarded port until the guest answers."""
    script = (
        "while :; do got=$(sleep 9 | socat - TCP:127.0.0.1:8080 2>/dev/null)\n"
        '[ -n "$got" ] && echo "got $got"; sleep 1; done'
    )
    with tester_lab.host.start(["sh", "-c", script]) as client:
        yield client


@pytest.mark.usefixtures("uplink")
def test_user_mode_needs_no_privileges(server: Server, tester_lab: Lab, forwarded: Command) -> None:
    secret = "echo secret | socat -u - TCP-LISTEN:7777,bind=127.0.0.1,reuseaddr,fork"
    script = (
        DHCP
        + TRANSFER.format(host=SERVER_IP).replace(
            f"ping -c 3 -s 8000 {SERVER_IP} | grep packets", ":"
        )
        + "(echo hello; sleep 9) | socat - TCP-LISTEN:80,reuseaddr\n"
    )
    with (
        tester_lab.host.start(["sh", "-c", secret]),
        tester_lab.start("--net", "user,hostfwd=8080:80", "-m", "512", script=script) as vm,
    ):
        forwarded.wait_for("got hello", GUEST_SECONDS)
        facts = vm.finish()
    assert f"inet {UPLINK_IP}/24" in facts["address"]
    assert "192.0.2.77" in facts["lookup"]
    assert "secret" not in facts["loopback"]
    assert facts["mtu"] == "65520"
    assert facts["down"].split()[0] == server.digest
    assert server.came_back()
    assert tester_lab.host.run(["pgrep", "passt"]).stdout == ""


@pytest.fixture
def local_network(kvmhost: KvmHost) -> Iterator[None]:
    """A network that the host is in, with no gateway."""
    kvmhost.shell(
        "ip link add local type dummy; ip link set local up; ip addr add 10.5.0.1/24 dev local"
    )
    yield
    kvmhost.shell("ip link del local")


@pytest.mark.usefixtures("local_network")
def test_user_mode_without_a_default_route_reaches_what_the_host_reaches(
    tester_lab: Lab, forwarded: Command
) -> None:
    answer = "echo from the host | socat -u - TCP-LISTEN:5000,bind=10.5.0.1,reuseaddr"
    before, _, _ = DHCP.partition("fact lookup")
    script = (
        before
        + "fact answer socat -u TCP:10.5.0.1:5000,retry=9 -\n"
        + "(echo hello; sleep 9) | socat - TCP-LISTEN:80,reuseaddr\n"
    )
    with (
        tester_lab.host.start(["sh", "-c", answer]),
        tester_lab.start("--net", "user,hostfwd=8080:80", script=script) as vm,
    ):
        forwarded.wait_for("got hello", GUEST_SECONDS)
        facts = vm.finish()
    assert "inet 10.0.2.15/24" in facts["address"]
    assert facts["answer"] == "from the host"
    assert "this host has no gateway" in vm.log
