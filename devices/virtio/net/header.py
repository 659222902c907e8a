# SPDX-License-Identifier: BSD-3-Clause
"""struct virtio_net_hdr, and the check of a driver's header for its frame (virtio 1.3 §5.1.6.2)."""

from __future__ import annotations

from struct import Struct

from devices.virtio.net import features as bits
from sys_util.typing import Final

VIRTIO_NET_HDR_F_NEEDS_CSUM: Final = 1
VIRTIO_NET_HDR_F_DATA_VALID: Final = 2
VIRTIO_NET_HDR_GSO_NONE: Final = 0
VIRTIO_NET_HDR_GSO_TCPV4: Final = 1
VIRTIO_NET_HDR_GSO_TCPV6: Final = 4
VIRTIO_NET_HDR_GSO_UDP_L4: Final = 5
VIRTIO_NET_HDR_GSO_ECN: Final = 0x80

# flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
HEADER: Final = Struct("<BBHHHHH")
HEADER_BYTES: Final = HEADER.size
NUM_BUFFERS_AT: Final = 10
PLAIN_HEADER: Final = bytes(HEADER_BYTES)

# An Ethernet header; and the largest IP packet with such a header, rounded up.
MIN_FRAME_BYTES: Final = 14
MAX_FRAME_BYTES: Final = 65550

_CSUM_BYTES: Final = 2

# The GSO types, and the feature that allows each.
_GSO_FEATURES: Final = (
    (VIRTIO_NET_HDR_GSO_TCPV4, bits.VIRTIO_NET_F_HOST_TSO4),
    (VIRTIO_NET_HDR_GSO_TCPV6, bits.VIRTIO_NET_F_HOST_TSO6),
    (VIRTIO_NET_HDR_GSO_UDP_L4, bits.VIRTIO_NET_F_HOST_USO),
)


class HeaderRules:
    """What the headers of a driver may contain, by the features that it negotiated."""

    __slots__ = ("checksums", "gso_types")

    def __init__(self, features: int) -> None:
        self.checksums = bool(features >> bits.VIRTIO_NET_F_CSUM & 1)
        allowed = [kind for kind, bit in _GSO_FEATURES if features >> bit & 1]
        if features >> bits.VIRTIO_NET_F_HOST_ECN & 1:
            allowed += [
                kind | VIRTIO_NET_HDR_GSO_ECN
                for kind in allowed
                if kind != VIRTIO_NET_HDR_GSO_UDP_L4
            ]
        self.gso_types = frozenset(allowed)

    def accept(self, header: bytes, frame_bytes: int) -> bytes | None:
        """Return the header to pass on for a frame of ``frame_bytes``; ``None`` drops the frame.

        Unknown flags, and those that only a device may set, are ignored (§5.1.6.2.2).
        """
        if not MIN_FRAME_BYTES <= frame_bytes <= MAX_FRAME_BYTES:
            return None
        if header == PLAIN_HEADER:
            return header
        flags, gso_type, hdr_len, gso_size, start, offset, _ = HEADER.unpack(header)
        needs_csum = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
        if needs_csum and (not self.checksums or start + offset + _CSUM_BYTES > frame_bytes):
            return None
        if gso_type == VIRTIO_NET_HDR_GSO_NONE:
            hdr_len = gso_size = 0
        elif not needs_csum or gso_type not in self.gso_types or not gso_size:
            return None
        if hdr_len > frame_bytes:
            return None
        return HEADER.pack(needs_csum, gso_type, hdr_len, gso_size, start, offset, 0)
