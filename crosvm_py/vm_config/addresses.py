# SPDX-License-Identifier: BSD-3-Clause
"""Read the addresses of a network card."""

from __future__ import annotations

from sys_util import socket
from sys_util.typing import Final

_MAC_BYTES: Final = 6
_HEX: Final = frozenset("0123456789abcdefABCDEF")


def mac_bytes(text: str) -> bytes | None:
    """Return the bytes of a MAC address, two digits for each, or ``None``."""
    parts = text.split(":")
    if len(parts) != _MAC_BYTES or not all(len(part) == 2 and set(part) <= _HEX for part in parts):
        return None
    return bytes.fromhex("".join(parts))


def ipv4_bytes(text: str) -> bytes | None:
    """Return the bytes of an IPv4 address, or ``None``."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):  # ValueError: a zero byte, or half a surrogate pair
        return None
