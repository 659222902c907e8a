# SPDX-License-Identifier: BSD-3-Clause
"""TAP devices of the host (<linux/if_tun.h>, netdevice(7)).

This needs only a few ioctls, which every kernel has. A netlink library would do the same, but
importing one would take longer than all these calls.
"""

from __future__ import annotations

import fcntl
import os
from struct import Struct

from sys_util import socket
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

TUN_PATH: Final = "/dev/net/tun"

IFF_TUN: Final = 0x0001
IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_DETACH_QUEUE: Final = 0x0400
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
_TAP_FLAGS: Final = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40

SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCSIFADDR: Final = 0x8916
SIOCSIFNETMASK: Final = 0x891C
SIOCGIFMTU: Final = 0x8921
SIOCSIFMTU: Final = 0x8922
SIOCGIFINDEX: Final = 0x8933
_IFF_UP: Final = 1

IFNAMSIZ: Final = 16

# struct ifreq: the name, and a union of 24 bytes.
_IFREQ: Final = Struct("16s24x")
_IFREQ_FLAGS: Final = Struct("=16sH22x")
_IFREQ_INT: Final = Struct("=16si20x")
# name, then struct sockaddr_in in the union: family, port, address
_IFREQ_ADDRESS: Final = Struct("=16sHH4s16x")
_INT: Final = Struct("=i")


def attach_queue(fd: int, *, attached: bool) -> None:
    """Let the TAP deliver frames to this queue too, or not."""
    flag = IFF_ATTACH_QUEUE if attached else IFF_DETACH_QUEUE
    fcntl.ioctl(fd, TUNSETQUEUE, _IFREQ_FLAGS.pack(b"", flag))


def set_offloads(fd: int, flags: int) -> None:
    """Tell the TAP which offloads its reader can handle, as TUN_F_* flags."""
    fcntl.ioctl(fd, TUNSETOFFLOAD, flags)


def set_header_size(fd: int, size_bytes: int) -> None:
    """Set the size of the virtio_net_hdr that precedes each frame."""
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, _INT.pack(size_bytes))


def open_queue(name: str, *, multi_queue: bool) -> tuple[int, str]:
    """Open one queue of a TAP; return its descriptor, which the caller owns, and the TAP's name.

    If no TAP has this name, the kernel makes one, which disappears with its last descriptor. It
    replaces a ``%d`` in ``name`` by a free number.
    """
    flags = _TAP_FLAGS | (IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        answer = fcntl.ioctl(fd, TUNSETIFF, _IFREQ_FLAGS.pack(os.fsencode(name), flags))
    except OSError:
        os.close(fd)
        raise
    return fd, _name(answer)


def describe_queue(fd: int) -> tuple[str, int]:
    """Return the name and the IFF_* flags of the TUN or TAP behind ``fd``."""
    answer = fcntl.ioctl(fd, TUNGETIFF, _IFREQ.pack(b""))
    return _name(answer), _IFREQ_FLAGS.unpack(answer)[1]


def is_attached(fd: int) -> bool:
    """Return whether the TAP delivers frames to this queue; see ``attach_queue``."""
    return not describe_queue(fd)[1] & IFF_DETACH_QUEUE


def is_tap(flags: int) -> bool:
    """Return whether these are the flags of a TAP that puts only a virtio_net_hdr before frames."""
    return flags & (_TAP_FLAGS | IFF_TUN) == _TAP_FLAGS


def _name(ifreq: bytes) -> str:
    raw: bytes = _IFREQ.unpack(ifreq)[0]
    return raw.partition(b"\0")[0].decode()


class Interfaces:
    """The host's network interfaces by name. Owns a socket; use it in a ``with`` statement.

    Its sockets can send nothing before they are connected, which no method does.
    """

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def exists(self, name: str) -> bool:
        """Return whether an interface has this name."""
        try:
            self._call(SIOCGIFINDEX, _IFREQ.pack(os.fsencode(name)))
        except OSError:
            return False
        return True

    def mtu(self, name: str) -> int:
        """Return the size of the longest packet, in bytes."""
        answer = self._call(SIOCGIFMTU, _IFREQ.pack(os.fsencode(name)))
        mtu: int = _IFREQ_INT.unpack(answer)[1]
        return mtu

    def set_mtu(self, name: str, mtu: int) -> None:
        """Set the size of the longest packet, in bytes."""
        self._call(SIOCSIFMTU, _IFREQ_INT.pack(os.fsencode(name), mtu))

    def set_address(self, name: str, address: bytes, netmask: bytes) -> None:
        """Give the interface an IPv4 address and netmask, of 4 bytes each."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, netmask)):
                ifreq = _IFREQ_ADDRESS.pack(os.fsencode(name), socket.AF_INET, 0, value)
                fcntl.ioctl(sock.fileno(), request, ifreq)

    def bring_up(self, name: str) -> None:
        """Bring the interface up, unless it is up already."""
        raw = os.fsencode(name)
        flags: int = _IFREQ_FLAGS.unpack(self._call(SIOCGIFFLAGS, _IFREQ.pack(raw)))[1]
        if not flags & _IFF_UP:
            self._call(SIOCSIFFLAGS, _IFREQ_FLAGS.pack(raw, flags | _IFF_UP))

    def _call(self, request: int, ifreq: bytes) -> bytes:
        return fcntl.ioctl(self._sock.fileno(), request, ifreq)
