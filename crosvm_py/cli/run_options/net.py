# SPDX-License-Identifier: BSD-3-Clause
"""Network cards on the command line: ``--net``, and the options of 2018 and after.

What a TAP must be is checked where it is opened.
"""

from __future__ import annotations

import socket

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup, switch, text_option
from crosvm_py.cli.grammar.scanner import parse_number
from crosvm_py.cli.run_options.limits import FIELDS as LIMIT_FIELDS
from crosvm_py.cli.run_options.limits import limits
from crosvm_py.config import Forward, NetworkSpec
from sys_util.errors import ConfigError, UsageError
from sys_util.tap import IFNAMSIZ
from sys_util.typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.cli.grammar.scanner import Scanner

T = TypeVar("T")

MAX_CARDS: Final = 8
MAX_PAIRS: Final = 16
# What IPv4 asks for at least (RFC 791), and what an Ethernet header leaves of a TAP's 64 KiB.
MIN_MTU: Final = 68
MAX_MTU: Final = 65521
# The longest that passt knows; it cuts and joins, so that longer is faster.
USER_MTU: Final = 65520
MAX_PORT: Final = 65535
_MAC_BYTES: Final = 6


def read_mac(text: str) -> bytes:
    """Return the address of one card.

    Raises:
        ValueError: it is no such address.
    """
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) if len(part) < 3 and part.isalnum() else 256 for part in parts)
    except ValueError:
        mac = b""
    if len(mac) != _MAC_BYTES:
        raise ValueError("not a MAC address (like 52:54:00:12:34:56)")
    if mac[0] & 1:
        raise ValueError("a multicast address (the first byte must be even)")
    if not any(mac):
        raise ValueError("no card has the address 0")
    return mac


def read_ip(text: str) -> bytes:
    """Return an IPv4 address that a host can have.

    Raises:
        ValueError: it is no such address.
    """
    try:
        address = socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError("not an IPv4 address") from None
    if address[0] in (0, 127) or address[0] >= 224:  # this network, loopback, multicast and above
        raise ValueError("no address that a host on a network can have")
    return address


def read_netmask(text: str) -> bytes:
    """Return a netmask of ones and then zeros, with room for a host and a guest.

    Raises:
        ValueError: it is no such mask.
    """
    try:
        mask = socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError("not a netmask (like 255.255.255.0)") from None
    hosts = int.from_bytes(mask, "big") ^ 0xFFFF_FFFF
    if hosts & (hosts + 1):
        raise ValueError("ones behind a zero")
    if not 1 <= hosts < 0xFFFF_FFFF:
        raise ValueError("no room for a host and a guest")
    return mask


def read_forward(text: str) -> Forward:
    """Read ``[tcp:|udp:][ADDRESS/]HOST-PORT[:GUEST-PORT]``.

    Raises:
        ValueError: it is no such thing.
    """
    protocol, colon, rest = text.partition(":")
    if not colon or protocol not in ("tcp", "udp"):
        protocol, rest = "tcp", text
    address, slash, ports = rest.rpartition("/")
    if slash and not (
        _is_address(socket.AF_INET, address) or _is_address(socket.AF_INET6, address)
    ):
        raise ValueError(f"{address!r} is not an address to listen at")
    host, colon, guest = ports.partition(":")
    return Forward(protocol, address, _read_port(host), _read_port(guest if colon else host))


def _is_address(family: int, text: str) -> bool:
    try:
        return bool(socket.inet_pton(family, text))
    except OSError:
        return False


def _read_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_PORT):
        raise ValueError(f"{text!r} is not a port (1 to {MAX_PORT})")
    return int(text)


def _read_name(scanner: Scanner) -> str:
    name = scanner.string()
    if not 0 < len(name.encode()) < IFNAMSIZ or "/" in name or "%" in name or name in (".", ".."):
        raise ValueError("not the name of a network interface")
    return name


def _read_forwards(scanner: Scanner) -> tuple[Forward, ...]:
    return _read_list(scanner, lambda item: read_forward(item.string()))


def _read_fds(scanner: Scanner) -> tuple[int, ...]:
    return _read_list(scanner, lambda item: parse_number(item.word()))


def _read_list(scanner: Scanner, item: Callable[[Scanner], T]) -> tuple[T, ...]:
    """Read a list in brackets, or its one item without them."""
    if not scanner.accept("["):
        return (item(scanner),)
    items: list[T] = []
    while not scanner.accept("]"):
        items.append(item(scanner))
        if not scanner.accept(",") and scanner.peek() != "]":
            raise ValueError("no closing ]")
    if not items:
        raise ValueError("the list is empty")
    return tuple(items)


_TAP_NAME: Final = keyvalue.Field(
    "tap-name", _read_name, "", "NAME", "a TAP that exists", is_text=True
)
_TAP_FD: Final[keyvalue.Field[tuple[int, ...]]] = keyvalue.Field(
    "tap-fd",
    _read_fds,
    (),
    "N|[N,…]",
    "an inherited descriptor of a TAP, or one for each pair of queues",
)
_HOST_IP: Final = keyvalue.Field(
    "host-ip",
    lambda scanner: read_ip(scanner.string()),
    b"",
    "IP",
    "make a TAP, on which the host has this address",
)
_NETMASK: Final = keyvalue.Field(
    "netmask", lambda scanner: read_netmask(scanner.string()), b"", "MASK", "netmask of host-ip"
)
_USER: Final = keyvalue.flag(
    "user", "user-mode networking through passt, without privileges and without a TAP"
)
_HOSTFWD: Final[keyvalue.Field[tuple[Forward, ...]]] = keyvalue.Field(
    "hostfwd",
    _read_forwards,
    (),
    "[[tcp:|udp:][IP/]PORT[:PORT],…]",
    "with user: ports of the host that lead into the guest",
)
_HOST_LOOPBACK: Final = keyvalue.flag(
    "host-loopback", "with user: the address of the gateway leads to 127.0.0.1 of the host"
)
_MAC: Final = keyvalue.Field(
    "mac",
    lambda scanner: read_mac(scanner.string()),
    b"",
    "MAC",
    "the guest's address",
    shown="random",
)
_PAIRS: Final = keyvalue.integer("vq-pairs", f"pairs of queues, 1 to {MAX_PAIRS}", 1)
_MTU: Final = keyvalue.integer(
    "mtu", f"longest packet, {MIN_MTU} to {MAX_MTU}", 0, shown="that of the TAP"
)
_VHOST: Final = keyvalue.flag(
    "vhost-net", "with a TAP: the kernel of the host moves the frames (/dev/vhost-net)"
)

FIELDS: Final = (
    *(_TAP_NAME, _TAP_FD, _HOST_IP, _NETMASK, _USER, _HOSTFWD, _HOST_LOOPBACK),
    *(_MAC, _PAIRS, _MTU, _VHOST),
    *LIMIT_FIELDS,
)
_KINDS: Final = (_TAP_NAME, _TAP_FD, _HOST_IP, _USER)


def _read_net(option: str, text: str) -> NetworkSpec:
    values = keyvalue.parse(option, text, FIELDS)
    kinds = [field.name for field in _KINDS if bool(values[field])]
    if len(kinds) != 1:
        names = ", ".join(field.name for field in _KINDS)
        found = (
            f"{' and '.join(kinds)} exclude each other" if kinds else f"one of {names} is missing"
        )
        raise UsageError(f"{option}: {found} (in {text!r})")
    user = kinds[0] == "user"
    pairs = len(values[_TAP_FD]) if _TAP_FD in values and _PAIRS not in values else values[_PAIRS]
    spec = NetworkSpec(
        option=option,
        tap_name=values[_TAP_NAME],
        tap_fds=values[_TAP_FD],
        host_ip=values[_HOST_IP],
        netmask=values[_NETMASK],
        user=user,
        forwards=values[_HOSTFWD],
        host_loopback=values[_HOST_LOOPBACK],
        mac=values[_MAC],
        pairs=pairs,
        mtu=values[_MTU] or (USER_MTU if user else 0),
        limits=limits(option, values),
        vhost=values[_VHOST],
    )
    _check(spec)
    return spec


def _check(spec: NetworkSpec) -> None:
    """Refuse what each key allows, but not all of them together."""
    option = spec.option
    if bool(spec.host_ip) != bool(spec.netmask):
        raise ConfigError(f"{option}: host-ip and netmask need each other")
    if not 1 <= spec.pairs <= MAX_PAIRS:
        raise ConfigError(f"{option}: vq-pairs={spec.pairs} is not in 1..{MAX_PAIRS}")
    if spec.tap_fds and len(spec.tap_fds) != spec.pairs:
        raise ConfigError(
            f"{option}: vq-pairs={spec.pairs} needs as many descriptors as tap-fd, "
            f"not {len(spec.tap_fds)}"
        )
    if spec.mtu and not MIN_MTU <= spec.mtu <= MAX_MTU:
        raise ConfigError(f"{option}: mtu={spec.mtu} is not in {MIN_MTU}..{MAX_MTU}")
    if spec.user and spec.pairs > 1:
        raise ConfigError(f"{option}: user-mode networking has one pair of queues")
    if (spec.forwards or spec.host_loopback) and not spec.user:
        raise ConfigError(f"{option}: hostfwd and host-loopback are for user")
    if spec.vhost and spec.user:
        raise ConfigError(f"{option}: vhost-net needs a TAP, not user")
    if spec.vhost and any(spec.limits):
        raise ConfigError(f"{option}: vhost-net and limits exclude each other")
    if spec.host_ip:
        _check_address(option, spec.host_ip, spec.netmask)


def _check_address(option: str, address: bytes, netmask: bytes) -> None:
    hosts = int.from_bytes(netmask, "big") ^ 0xFFFF_FFFF
    host = int.from_bytes(address, "big") & hosts
    if hosts > 1 and host in (0, hosts):
        shown = socket.inet_ntop(socket.AF_INET, address)
        kind = "broadcast" if host else "network"
        raise ConfigError(f"{option}: {shown} is the {kind} address of its network")


NET: Final = Option(
    "-n --net",
    "TAP|KEY=VALUE…",
    "a network card, on a TAP or with user-mode networking; may be repeated",
    _read_net,
    repeatable=True,
    fields=FIELDS,
)
HOST_IP: Final = text_option(
    "--host-ip", "IP", "a card on a new TAP, and the address of the host there"
)
NETMASK: Final = text_option("--netmask", "MASK", "the netmask for --host-ip")
MAC: Final = text_option("--mac", "MAC", "the guest's MAC address for --host-ip")
TAP_NAME: Final = text_option(
    "--tap-name", "NAME", "the same as --net tap-name=NAME", repeatable=True
)
TAP_FD: Final = text_option("--tap-fd", "N", "the same as --net tap-fd=N", repeatable=True)
VHOST_NET: Final = switch("--vhost-net", "the key vhost-net for every card with a TAP")
GROUP: Final = OptionGroup(
    "Network",
    (NET, TAP_NAME, TAP_FD, HOST_IP, NETMASK, MAC, VHOST_NET),
    examples=(
        "crosvm run --net 'user,hostfwd=[8080:80]' -r rootfs.img vmlinux",
        "crosvm run --net tap-name=tap0,vhost-net -r rootfs.img vmlinux",
    ),
)


def networks(arguments: Arguments) -> tuple[NetworkSpec, ...]:
    """Return the cards: those of ``--net`` first, in the order of the command line.

    Raises:
        UsageError: of ``--host-ip``, ``--netmask`` and ``--mac`` only some are there, or wrong.
        ConfigError: there are too many.
    """
    specs = list(arguments.every(NET))
    specs += [_read_net("--tap-name", f'tap-name="{name}"') for name in arguments.every(TAP_NAME)]
    specs += [_read_net("--tap-fd", f"tap-fd={fd}") for fd in arguments.every(TAP_FD)]
    given = [option.name for option in (HOST_IP, NETMASK, MAC) if arguments.has(option)]
    if given:
        if len(given) < 3:
            raise UsageError(f"{given[0]}: --host-ip, --netmask and --mac need one another")
        ip, mask, mac = (arguments.get(option) for option in (HOST_IP, NETMASK, MAC))
        specs.append(_read_net("--host-ip", f'host-ip="{ip}",netmask="{mask}",mac="{mac}"'))
    if len(specs) > MAX_CARDS:
        raise ConfigError(f"--net: {len(specs)} cards are above the limit of {MAX_CARDS}")
    if arguments.has(VHOST_NET):
        if all(spec.user for spec in specs):
            raise ConfigError("--vhost-net: there is no card with a TAP")
        specs = [spec if spec.user else _with_vhost(spec) for spec in specs]
    return tuple(specs)


def _with_vhost(spec: NetworkSpec) -> NetworkSpec:
    names = NetworkSpec.__match_args__
    changed = NetworkSpec(**{name: getattr(spec, name) for name in names} | {"vhost": True})
    _check(changed)
    return changed
