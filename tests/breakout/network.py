# SPDX-License-Identifier: BSD-3-Clause
"""Attempts on sockets: to make one of any family, and to reach anybody with one."""

from __future__ import annotations

import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import EVERYBODY, Attempt, any_of, every, just, on_each
from tests.breakout.hands import address, call

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.breakout.attempt import Cell

GROUP: Final = "network"

_FAMILIES: Final = range(64)
_TYPES: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
_QUIET: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_SENDS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_TEST_NET: Final = b"\xc0\x00\x02\x01"  # 192.0.2.1, RFC 5737
_LOOPBACK: Final = b"\x7f\x00\x00\x01"
_VMADDR_CID_HOST: Final = 2


def inet(address: bytes, port: int) -> bytes:
    return struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + address + bytes(8)


def unix(name: bytes) -> bytes:
    return struct.pack("<H", socket.AF_UNIX) + name


def every_family(kind: int) -> Callable[[Cell], object]:
    def act(_cell: Cell) -> None:
        any_of([partial(make, family, kind) for family in _FAMILIES])

    return act


def make(family: int, kind: int, protocol: int = 0) -> None:
    call("close", call("socket", family, kind, protocol))


def connect(family: int, kind: int, address: bytes) -> None:
    fd = call("socket", family, kind | _QUIET, 0)
    try:
        call("connect", fd, address, len(address))
    finally:
        call("close", fd)


def send_to(fd: int, address: bytes) -> None:
    call("sendto", fd, b"x", 1, _SENDS, address, len(address))


def datagram(_cell: Cell) -> None:
    fd = call("socket", socket.AF_INET, socket.SOCK_DGRAM, 0)
    try:
        send_to(fd, inet(_TEST_NET, 9))
    finally:
        call("close", fd)


def address_vsock(port: int) -> bytes:
    return struct.pack("<HHIIBxxx", socket.AF_VSOCK, 0, port, _VMADDR_CID_HOST, 0)


def pair(_cell: Cell) -> None:
    ends = bytearray(8)
    call("socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0, ends)
    for fd in struct.unpack("ii", ends):
        call("close", fd)


def listen(_cell: Cell) -> None:
    fd = call("socket", socket.AF_INET, socket.SOCK_STREAM | _QUIET, 0)
    try:
        call("listen", fd, 1)
    finally:
        call("close", fd)


def abstract(kind: int) -> Callable[[Cell], object]:
    return lambda cell: connect(socket.AF_UNIX, kind, unix(b"\0" + cell.abstract))


def beside(prefix: bytes) -> Callable[[Cell], object]:
    return lambda cell: connect(
        socket.AF_UNIX, socket.SOCK_STREAM, unix(prefix + cell.beside + b"\0")
    )


def control(cell: Cell) -> None:
    """Connect to a control socket: ours is at such a path, and may lie in vsock's directory."""
    connect(socket.AF_UNIX, socket.SOCK_SEQPACKET, unix(cell.control + b"\0"))


def redirect(cell: Cell) -> None:
    """Connect the channel itself to somebody else."""
    address = unix(b"\0" + cell.abstract)
    call("connect", cell.channel, address, len(address))


def send_addressed(cell: Cell) -> None:
    """Name a receiver where the policy allows the call for the channel."""
    address = bytearray(inet(_LOOPBACK, cell.port))
    send_to(cell.channel, bytes(address))


def pass_descriptor(cell: Cell) -> None:
    """Descriptors in flight count against every process of the user, who soon can pass none."""
    rights = struct.pack("Qiii", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, cell.channel) + bytes(4)
    header = struct.pack("QIxxxxQQQQIxxxx", 0, 0, 0, 0, address(rights), len(rights), 0)
    call("sendmsg", cell.channel, header, _SENDS)


ATTEMPTS: Final = (
    *(
        Attempt(GROUP, f"socket of every family, {word}", every_family(kind), proof=True)
        for word, kind in zip(("stream", "datagram", "raw", "seqpacket"), _TYPES, strict=True)
    ),
    Attempt(
        GROUP,
        "netlink socket",
        lambda _cell: make(socket.AF_NETLINK, socket.SOCK_RAW),
        proof=True,
    ),
    Attempt(
        GROUP,
        "packet socket",
        lambda _cell: make(socket.AF_PACKET, socket.SOCK_RAW, 0x300),
        jail=True,
        proof=True,
    ),
    Attempt(
        GROUP,
        "connect to the host by TCP",
        lambda cell: connect(socket.AF_INET, socket.SOCK_STREAM, inet(_LOOPBACK, cell.port)),
        jail=True,
    ),
    Attempt(GROUP, "send a datagram to the network", datagram, jail=True),
    Attempt(
        GROUP,
        "connect to the host by vsock",
        lambda cell: connect(socket.AF_VSOCK, socket.SOCK_STREAM, address_vsock(cell.port)),
    ),
    Attempt(
        GROUP,
        "connect to an abstract UNIX socket",
        abstract(socket.SOCK_STREAM),
        jail=True,
        proof=True,
    ),
    Attempt(
        GROUP,
        "connect to an abstract UNIX socket for messages",
        abstract(socket.SOCK_SEQPACKET),
        jail=True,
    ),
    Attempt(GROUP, "connect to a UNIX socket by its path", beside(b""), jail=True, proof=True),
    Attempt(GROUP, "connect to a UNIX socket through ..", beside(b"/.."), jail=True, proof=True),
    Attempt(GROUP, "connect to a control socket", control, jail=True, proof=True),
    Attempt(GROUP, "datagram socket of UNIX", lambda _cell: make(1, socket.SOCK_DGRAM), proof=True),
    Attempt(GROUP, "pair of sockets", pair, proof=True),
    Attempt(GROUP, "listen", listen, only=EVERYBODY, proof=True),
    Attempt(GROUP, "connect the channel to another", redirect, jail=True),
    Attempt(GROUP, "send to an address", send_addressed),
    Attempt(
        GROUP,
        "give a socket a name",
        lambda cell: call("bind", cell.channel, unix(b"\0broken-out"), 13),
    ),
    Attempt(
        GROUP,
        "set an option of each socket",
        on_each(every, lambda fd: call("setsockopt", fd, 1, 8, struct.pack("i", 1 << 20), 4)),
    ),
    Attempt(
        GROUP,
        "read an option of each socket",
        on_each(
            every, lambda fd: call("getsockopt", fd, 1, 17, bytearray(12), struct.pack("I", 12))
        ),
    ),
    Attempt(
        GROUP,
        "ask each socket for its peer",
        on_each(every, lambda fd: call("getpeername", fd, bytearray(128), struct.pack("I", 128))),
    ),
    Attempt(
        GROUP,
        "send many messages at once",
        lambda cell: call("sendmmsg", cell.channel, bytearray(64), 1, _SENDS),
    ),
    Attempt(GROUP, "pass a descriptor on", pass_descriptor),
    Attempt(
        GROUP,
        "receive without the flags of the policy",
        lambda cell: call("recvmsg", cell.channel, bytearray(56), socket.MSG_ERRQUEUE | _SENDS),
    ),
    Attempt(GROUP, "make sockets in the kernel's ring", just("io_uring_setup", 1, bytearray(120))),
)
