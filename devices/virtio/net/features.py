# SPDX-License-Identifier: BSD-3-Clause
"""Feature bits of virtio-net (virtio 1.3 §5.1.3), and the offloads of a TAP that match them."""

from __future__ import annotations

from sys_util.tap import (
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TUN_F_USO4,
    TUN_F_USO6,
)
from sys_util.typing import Final

VIRTIO_NET_F_CSUM: Final = 0
VIRTIO_NET_F_GUEST_CSUM: Final = 1
VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: Final = 2
VIRTIO_NET_F_MTU: Final = 3
VIRTIO_NET_F_MAC: Final = 5
VIRTIO_NET_F_GUEST_TSO4: Final = 7
VIRTIO_NET_F_GUEST_TSO6: Final = 8
VIRTIO_NET_F_GUEST_ECN: Final = 9
VIRTIO_NET_F_HOST_TSO4: Final = 11
VIRTIO_NET_F_HOST_TSO6: Final = 12
VIRTIO_NET_F_HOST_ECN: Final = 13
VIRTIO_NET_F_MRG_RXBUF: Final = 15
VIRTIO_NET_F_STATUS: Final = 16
VIRTIO_NET_F_CTRL_VQ: Final = 17
VIRTIO_NET_F_CTRL_RX: Final = 18
VIRTIO_NET_F_CTRL_RX_EXTRA: Final = 20
VIRTIO_NET_F_GUEST_ANNOUNCE: Final = 21
VIRTIO_NET_F_MQ: Final = 22
VIRTIO_NET_F_CTRL_MAC_ADDR: Final = 23
VIRTIO_NET_F_GUEST_USO4: Final = 54
VIRTIO_NET_F_GUEST_USO6: Final = 55
VIRTIO_NET_F_HOST_USO: Final = 56
VIRTIO_NET_F_SPEED_DUPLEX: Final = 63

# How many pairs of queues a card may have (VIRTIO_NET_F_MQ). We chose it: a TAP could have 256.
MAX_PAIRS: Final = 16

# The GUEST_* features, and the flag of TUNSETOFFLOAD for each.
_TUN_FLAGS: Final = (
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6),
)


def mask(*bits: int) -> int:
    """Return the features with these bit numbers."""
    return sum(1 << bit for bit in bits)


# The features that work with any network behind the device.
PLAIN_FEATURES: Final = mask(
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_SPEED_DUPLEX,
)

# The features that the driver may turn off and on later (§5.1.6.5.6.1).
GUEST_OFFLOADS: Final = mask(*(bit for bit, _ in _TUN_FLAGS))

# The features that a TAP adds: the host's network stack reads and writes virtio-net's header.
TAP_FEATURES: Final = mask(
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
)
USO_FEATURES: Final = mask(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO)


def tun_offloads(features: int) -> int:
    """Return the argument of TUNSETOFFLOAD for the driver's ``features``.

    TUN refuses segments without checksums, ECN without TSO, and USO4 without USO6 or the reverse.
    """
    if not features >> VIRTIO_NET_F_GUEST_CSUM & 1:
        return 0
    flags = sum(flag for bit, flag in _TUN_FLAGS if features >> bit & 1)
    if not flags & (TUN_F_TSO4 | TUN_F_TSO6):
        flags &= ~TUN_F_TSO_ECN
    if flags & (TUN_F_USO4 | TUN_F_USO6) != TUN_F_USO4 | TUN_F_USO6:
        flags &= ~(TUN_F_USO4 | TUN_F_USO6)
    return flags
