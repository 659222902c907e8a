# SPDX-License-Identifier: BSD-3-Clause
"""Network cards on the command line: ``--net``, and crosvm's older options.

TAPs are checked where they are opened.
"""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup, switch, text_option
from crosvm_py.cli.run_options.limits import FIELDS as LIMIT_FIELDS
from crosvm_py.cli.run_options.limits import limits
from crosvm_py.cli.run_options.net_values import (
    read_fds,
    read_forwards,
    read_ip,
    read_mac,
    read_name,
    read_netmask,
)
from crosvm_py.cli.run_options.twice import first_twice
from crosvm_py.config import MAX_CARDS, NetworkSpec
from devices.virtio.net.features import MAX_PAIRS
from sys_util import socket
from sys_util.errors import ConfigError, UsageError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.config import Forward

log = get_logger("crosvm.run")

# The minimum of IPv4 (RFC 791), and what an Ethernet header leaves of the 64 KiB of a TAP's frame.
MIN_MTU: Final = 68
MAX_MTU: Final = 65521
# The maximum of passt, which splits and joins packets itself, so that longer ones are faster.
USER_MTU: Final = 65520

_ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::"})

_TAP_NAME: Final = keyvalue.Field(
    "tap-name", read_name, "", "NAME", "a TAP that exists", is_text=True
)
_TAP_FD: Final[keyvalue.Field[tuple[int, ...]]] = keyvalue.Field(
    "tap-fd",
    read_fds,
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
    read_forwards,
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
    return net_spec(option, text, keyvalue.parse(option, text, FIELDS))


def net_spec(option: str, text: str, values: keyvalue.Values) -> NetworkSpec:
    """Return the card that ``values`` of ``FIELDS`` describe; ``text`` is what they were read from.

    Raises:
        UsageError, ConfigError: they do not fit together.
    """
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
    """Refuse combinations of values that are valid only one by one."""
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
        UsageError: ``--host-ip``, ``--netmask`` and ``--mac`` are not all given, or are wrong.
        ConfigError: there are too many cards, or they exclude each other.
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
    together(specs)
    if arguments.has(VHOST_NET):
        if all(spec.user for spec in specs):
            raise ConfigError("--vhost-net: there is no card with a TAP")
        specs = [spec if spec.user else _with_vhost(spec) for spec in specs]
    return tuple(specs)


def together(specs: Sequence[NetworkSpec]) -> tuple[NetworkSpec, ...]:
    """Return the cards of one VM.

    Raises:
        ConfigError: there are too many, or two cards claim the same.
    """
    if len(specs) > MAX_CARDS:
        raise ConfigError(f"--net: {len(specs)} cards are above the limit of {MAX_CARDS}")
    _check_together(specs)
    return tuple(specs)


def _check_together(specs: Sequence[NetworkSpec]) -> None:
    """Refuse names, addresses and ports that two cards claim.

    Without this, the kernel or passt would say that another process has them, or say nothing.
    """
    name = first_twice(spec.tap_name for spec in specs)
    if name:
        raise ConfigError(
            f"--net: two cards on the TAP {name}; vq-pairs=2 gives one card two queues"
        )
    fd = first_twice(str(fd) for spec in specs for fd in spec.tap_fds)
    if fd:
        raise ConfigError(f"--net: tap-fd={fd} is given twice")
    address = first_twice(spec.host_ip for spec in specs)
    if address:
        shown = socket.inet_ntop(socket.AF_INET, address)
        raise ConfigError(f"--net: host-ip={shown} is given to two cards")
    mac = first_twice(spec.mac for spec in specs)
    if mac:
        log.warning("--net: two cards have mac=%s; in one network neither works", mac.hex(":"))
    forwards = [forward for spec in specs for forward in spec.forwards]
    for index, forward in enumerate(forwards):
        if any(_same_port(forward, other) for other in forwards[:index]):
            at = f"{forward.protocol} port {forward.host_port}"
            raise ConfigError(f"--net: hostfwd: {at} of the host is forwarded twice")


def _same_port(one: Forward, other: Forward) -> bool:
    """Return whether both listen at the same port of the same address, or of any address."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return one.address == other.address or not {one.address, other.address}.isdisjoint(_ANY_ADDRESS)


def _with_vhost(spec: NetworkSpec) -> NetworkSpec:
    names = NetworkSpec.__match_args__
    changed = NetworkSpec(**{name: getattr(spec, name) for name in names} | {"vhost": True})
    _check(changed)
    return changed
