# SPDX-License-Identifier: BSD-3-Clause
"""Which frames of the host a driver can take (virtio 1.3 §5.1.6.4.1).

A TAP is told which offloads a driver wants. But it may still hold frames from before: for another
driver, or from before this one turned an offload off. So each header is checked.
"""

from __future__ import annotations

from devices.virtio.net import features as bits
from devices.virtio.net.header import (
    HEADER,
    HEADER_BYTES,
    PLAIN_HEADER,
    VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from devices.virtio.net.vectors import cut_bytes, scatter
from sys_util.tap import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_CSUM_BYTES: Final = 2
_ALL_ONES: Final = 0xFFFF

_GSO_TYPES: Final = (
    (TUN_F_TSO4, VIRTIO_NET_HDR_GSO_TCPV4),
    (TUN_F_TSO6, VIRTIO_NET_HDR_GSO_TCPV6),
    (TUN_F_USO4, VIRTIO_NET_HDR_GSO_UDP_L4),
)


class GuestOffloads:
    """What the header of a frame may contain, for a driver with these GUEST_* features on."""

    __slots__ = ("flags", "gso_types")

    def __init__(self, offloads: int) -> None:
        asked = bits.tun_offloads(offloads)
        self.flags = 0
        if asked & TUN_F_CSUM:
            self.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID
        types = [gso_type for flag, gso_type in _GSO_TYPES if asked & flag]
        if asked & TUN_F_TSO_ECN:
            types += [gso_type | VIRTIO_NET_HDR_GSO_ECN for gso_type in types]
        self.gso_types = frozenset((VIRTIO_NET_HDR_GSO_NONE, *types))

    def settle(self, vectors: Sequence[memoryview], length: int) -> bool:
        """Complete the checksum of a frame with header; return whether the driver can take it.

        The driver cannot take a segment that would have to be divided first.
        """
        header = cut_bytes(vectors, HEADER_BYTES)
        flags, gso_type, _, _, start, offset, _ = HEADER.unpack(header)
        if gso_type not in self.gso_types:
            return False
        if self.flags:  # clear unknown flags
            scatter(bytes([flags & self.flags]), vectors, 0)
            return True
        if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
            place = HEADER_BYTES + start + offset
            if place + _CSUM_BYTES > length:
                return False
            start += HEADER_BYTES
            checksum = _checksum(cut_bytes(vectors, length - start, start))
            scatter(checksum.to_bytes(_CSUM_BYTES, "big"), vectors, place)
        scatter(PLAIN_HEADER, vectors, 0)
        return True


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071); all ones for 0, which in UDP means no checksum."""
    number = int.from_bytes(data + bytes(len(data) % _CSUM_BYTES), "big")
    return _ALL_ONES - number % _ALL_ONES
