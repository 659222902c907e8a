# SPDX-License-Identifier: BSD-3-Clause
"""``--net`` and crosvm's older options: what they accept, and their errors."""

from __future__ import annotations

import pytest

from crosvm_py.cli.grammar.options import parse
from crosvm_py.cli.run_options.net import GROUP, networks
from crosvm_py.config import Forward, NetworkSpec
from sys_util.errors import ConfigError, UsageError

MAC = bytes.fromhex("525400123456")


def cards(*argv: str) -> tuple[NetworkSpec, ...]:
    return networks(parse(argv, GROUP.options))


def card(text: str) -> NetworkSpec:
    (spec,) = cards("--net", text)
    return spec


def test_no_option_is_no_card() -> None:
    assert cards() == ()


@pytest.mark.parametrize("text", ["tap-name=tap0", "tap_name=tap0", '"tap0"'])
def test_net_on_a_tap_by_name(text: str) -> None:
    assert card(text) == NetworkSpec(tap_name="tap0")


@pytest.mark.parametrize(
    ("text", "fds", "pairs"),
    [("tap-fd=7", (7,), 1), ("tap-fd=[7]", (7,), 1), ("tap-fd=[7,8],vq-pairs=2", (7, 8), 2)],
)
def test_net_on_open_taps(text: str, fds: tuple[int, ...], pairs: int) -> None:
    spec = card(text)
    assert (spec.tap_fds, spec.pairs) == (fds, pairs)


def test_net_open_taps_tell_the_number_of_pairs() -> None:
    assert card("tap-fd=[7,8,9]").pairs == 3


def test_net_on_a_new_tap() -> None:
    spec = card("host-ip=10.0.0.1,netmask=255.255.255.252,mac=52:54:0:12:34:56,mtu=9000,vq-pairs=4")
    assert spec.host_ip == bytes([10, 0, 0, 1])
    assert spec.netmask == bytes([255, 255, 255, 252])
    assert (spec.mac, spec.mtu, spec.pairs) == (MAC, 9000, 4)


def test_net_user_takes_long_packets() -> None:
    assert card("user") == NetworkSpec(user=True, mtu=65520)
    assert card("user=true,mtu=1500").mtu == 1500


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080", Forward("tcp", "", 8080, 8080)),
        ("8080:80", Forward("tcp", "", 8080, 80)),
        ("tcp:8080:80", Forward("tcp", "", 8080, 80)),
        ("udp:53", Forward("udp", "", 53, 53)),
        ("127.0.0.1/8080:80", Forward("tcp", "127.0.0.1", 8080, 80)),
        ("udp:127.0.0.1/8080:80", Forward("udp", "127.0.0.1", 8080, 80)),
        ("tcp:::1/8080", Forward("tcp", "::1", 8080, 8080)),
    ],
)
def test_net_user_forwards_ports(text: str, forward: Forward) -> None:
    assert card(f"user,hostfwd={text}").forwards == (forward,)
    assert card(f"user,hostfwd=[{text},9]").forwards == (forward, Forward("tcp", "", 9, 9))


@pytest.mark.parametrize("spelling", ["--host-ip", "--host_ip"])
def test_three_options_of_2018_make_a_card(spelling: str) -> None:
    argv = (spelling, "10.0.0.1", "--netmask", "255.255.255.0", "--mac", "52:54:00:12:34:56")
    (spec,) = cards(*argv)
    assert (spec.option, spec.host_ip, spec.mac) == ("--host-ip", bytes([10, 0, 0, 1]), MAC)


@pytest.mark.parametrize(
    "argv",
    [
        ("--host-ip", "10.0.0.1"),
        ("--mac", "52:54:00:12:34:56"),
        ("--host-ip", "10.0.0.1", "--netmask", "255.255.255.0"),
    ],
)
def test_some_of_the_three_options_are_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--host-ip, --netmask and --mac need one another"):
        cards(*argv)


def test_taps_by_the_shorter_options() -> None:
    first, second, third = cards("--tap-name", "tap0", "--tap-fd", "9", "--net", "user")
    assert (first.user, second.tap_name, third.tap_fds) == (True, "tap0", (9,))


def test_too_many_cards_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 cards are above the limit of 8"):
        cards(*["--net", "user"] * 9)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("tap0", "tap-name=tap0", "two cards on the TAP tap0; vq-pairs=2"),
        ("tap-fd=7", "tap-fd=[6,7]", "tap-fd=7 is given twice"),
        ("tap-fd=[8,8]", "user", "tap-fd=8 is given twice"),
        (
            "host-ip=10.0.0.1,netmask=255.0.0.0",
            "host-ip=10.0.0.1,netmask=255.255.0.0",
            r"host-ip=10\.0\.0\.1 is given to two cards",
        ),
        ("user,hostfwd=80", "user,hostfwd=80:8080", "tcp port 80 of the host is forwarded twice"),
        ("user,hostfwd=127.0.0.1/80", "user,hostfwd=[81,80]", "tcp port 80 of the host is"),
        ("user,hostfwd=0.0.0.0/80", "user,hostfwd=127.0.0.1/80", "tcp port 80 of the host is"),
        ("user,hostfwd=[udp:53,udp:53:54]", "user", "udp port 53 of the host is forwarded twice"),
    ],
)
def test_two_cards_do_not_claim_the_same(one: str, other: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"--net: .*{reason}"):
        cards("--net", one, "--net", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tap0", "tap1"),
        ("tap-fd=7", "tap-fd=8"),
        ("user,hostfwd=[80,udp:80]", "user,hostfwd=81:80"),
        ("user,hostfwd=127.0.0.1/80", "user,hostfwd=127.0.0.2/80"),
        ("user", "user"),
    ],
)
def test_two_cards_may_differ(one: str, other: str, lines: list[str]) -> None:
    assert len(cards("--net", one, "--net", other)) == 2
    assert lines == []


def test_two_cards_with_one_address_are_warned_of(lines: list[str]) -> None:
    assert len(cards(*["--net", "user,mac=52:54:00:12:34:56"] * 2)) == 2
    assert lines == ["--net: two cards have mac=52:54:00:12:34:56; in one network neither works"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mtu=1500", "one of tap-name, tap-fd, host-ip, user is missing"),
        ("user=false", "one of tap-name, tap-fd, host-ip, user is missing"),
        ("user,tap-name=tap0", "tap-name and user exclude each other"),
        ("tap-name=tap0,tap-fd=3", "tap-name and tap-fd exclude each other"),
        ("tap-name=''", "not the name of a network interface"),
        ("tap-name=a/b", "not the name of a network interface"),
        ("tap-name=..", "not the name of a network interface"),
        ("tap-name=tap%d", "not the name of a network interface"),
        ("tap-name=sixteencharacter", "not the name of a network interface"),
        ("tap-fd=x", "tap-fd='x': not a number"),
        ("tap-fd=-1", "not a number"),
        ("tap-fd=[]", "the list is empty"),
        ("tap-fd=[3", "tap-fd"),
        ("host-ip=10.0.0.256,netmask=255.0.0.0", "host-ip='10.0.0.256': not an IPv4 address"),
        ("host-ip=::1,netmask=255.0.0.0", "not an IPv4 address"),
        ("host-ip=224.0.0.1,netmask=255.0.0.0", "no address that a host on a network can have"),
        ("host-ip=127.0.0.1,netmask=255.0.0.0", "no address that a host on a network can have"),
        ("host-ip=0.0.0.0,netmask=255.0.0.0", "no address that a host on a network can have"),
        ("host-ip=10.0.0.1,netmask=255.0.255.0", "netmask='255.0.255.0': ones behind a zero"),
        ("host-ip=10.0.0.1,netmask=255.255.255.255", "no room for a host and a guest"),
        ("host-ip=10.0.0.1,netmask=0.0.0.0", "no room for a host and a guest"),
        ("host-ip=10.0.0.1,netmask=24", "not a netmask"),
        ("user,mac=01:02:03:04:05:06", "a multicast address"),
        ("user,mac=ff:ff:ff:ff:ff:ff", "a multicast address"),
        ("user,mac=0:0:0:0:0:0", "no card has the address 0"),
        ("user,mac=52:54:00:12:34", "not a MAC address"),
        ("user,mac=52:54:00:12:34:567", "not a MAC address"),
        ("user,mac=525400123456", "not a MAC address"),
        ("user,mac=+1:2:3:4:5:6", "not a MAC address"),
        ("user,mac=g:2:3:4:5:6", "not a MAC address"),
        ("user,hostfwd=0", "'0' is not a port"),
        ("user,hostfwd=65536", "'65536' is not a port"),
        ("user,hostfwd=80:", "'' is not a port"),
        ("user,hostfwd=sctp:80", "'sctp' is not a port"),
        ("user,hostfwd=1.2.3/80", "'1.2.3' is not an address to listen at"),
    ],
)
def test_net_nonsense_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        card(text)
    assert str(caught.value).startswith("--net: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("host-ip=10.0.0.1", "host-ip and netmask need each other"),
        ("tap-name=t,netmask=255.0.0.0", "host-ip and netmask need each other"),
        ("host-ip=10.0.0.0,netmask=255.255.255.0", "10.0.0.0 is the network address"),
        ("host-ip=10.0.0.255,netmask=255.255.255.0", "10.0.0.255 is the broadcast address"),
        ("tap-name=t,vq-pairs=0", "vq-pairs=0 is not in 1..16"),
        ("tap-name=t,vq-pairs=17", "vq-pairs=17 is not in 1..16"),
        ("tap-fd=[3,4],vq-pairs=3", "vq-pairs=3 needs as many descriptors as tap-fd, not 2"),
        ("tap-name=t,mtu=67", "mtu=67 is not in 68..65521"),
        ("tap-name=t,mtu=65522", "mtu=65522 is not in 68..65521"),
        ("user,vq-pairs=2", "user-mode networking has one pair of queues"),
        ("tap-name=t,hostfwd=80", "hostfwd and host-loopback are for user"),
        ("tap-name=t,host-loopback", "hostfwd and host-loopback are for user"),
    ],
)
def test_net_together_makes_no_sense(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        card(text)


def test_host_ip_in_a_network_of_two_is_good() -> None:
    assert card("host-ip=10.0.0.0,netmask=255.255.255.254").host_ip == bytes([10, 0, 0, 0])


def test_vhost_net_is_a_key_and_a_switch() -> None:
    assert card("tap-name=tap0,vhost-net").vhost
    user, tap = cards("--net", "user", "--net", "tap-name=tap0", "--vhost-net")
    assert (user.vhost, tap.vhost, tap.tap_name) == (False, True, "tap0")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("--vhost-net",), "there is no card with a TAP"),
        (("--net", "user", "--vhost-net"), "there is no card with a TAP"),
        (("--net", "user,vhost-net"), "vhost-net needs a TAP, not user"),
        (
            ("--net", "tap-name=t,vhost-net,ops-size=1,ops-refill-time=1"),
            "vhost-net and limits exclude each other",
        ),
    ],
)
def test_vhost_net_that_cannot_be(argv: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cards(*argv)
