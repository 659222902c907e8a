# SPDX-License-Identifier: BSD-3-Clause
"""Parse the addresses, names, ports and descriptors in the options of network cards."""

from __future__ import annotations

import os

from crosvm_py.cli.grammar.keyvalue import read_items
from crosvm_py.cli.grammar.scanner import parse_number
from crosvm_py.config import Forward
from sys_util import socket
from sys_util.tap import IFNAMSIZ
from sys_util.typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cli.grammar.scanner import Scanner

T = TypeVar("T")

MAX_PORT: Final = 65535
_MAC_BYTES: Final = 6


def read_mac(text: str) -> bytes:
    """Return the MAC address of one card.

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
    """Return a netmask: ones, then zeros, with room for the addresses of host and guest.

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
        ValueError: ``text`` does not have this form.
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


def read_name(scanner: Scanner) -> str:
    """Read the name of a network interface.

    Raises:
        ValueError: no interface can have this name.
    """
    name = scanner.string()
    if (
        not 0 < len(os.fsencode(name)) < IFNAMSIZ
        or "/" in name
        or "%" in name
        or name in (".", "..")
    ):
        raise ValueError("not the name of a network interface")
    return name


def read_forwards(scanner: Scanner) -> tuple[Forward, ...]:
    """Read one port to forward, or several in brackets.

    Raises:
        ValueError: one of them cannot be read.
    """
    return _read_list(scanner, lambda item: read_forward(item.string()))


def read_fds(scanner: Scanner) -> tuple[int, ...]:
    """Read one descriptor, or several in brackets.

    Raises:
        ValueError: one of them is no number.
    """
    return _read_list(scanner, lambda item: parse_number(item.word()))


def _read_list(scanner: Scanner, item: Callable[[Scanner], T]) -> tuple[T, ...]:
    """Read a list in brackets, or one item without brackets."""
    if not scanner.accept("["):
        return (item(scanner),)
    items = read_items(scanner, item)
    if not items:
        raise ValueError("the list is empty")
    return items
