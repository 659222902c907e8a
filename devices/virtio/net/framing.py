# SPDX-License-Identifier: BSD-3-Clause
"""Find where frames begin in passt's stream: passt of Debian 12 may send a length without a frame.

It sends the length of a frame and the frame itself by two calls, and drops either when its socket
is full (``tap_send()``). After a length without a frame, a reader would take the next length for
the frame. So every frame is checked. passt sends ARP and IP, whose headers tell the length, too. If
the two lengths differ, but match for a frame that begins one or more lengths later, the lengths
before that one had no frames.
"""

from __future__ import annotations

from struct import Struct

from devices.virtio.net.header import MAX_FRAME_BYTES, MIN_FRAME_BYTES
from sys_util.typing import Final

# Before each frame on the socket (passt's and QEMU's "stream" protocol).
LENGTH: Final = Struct(">I")
LENGTH_BYTES: Final = LENGTH.size

# The length, the Ethernet type, the total length of IPv4, the payload length of IPv6.
HEAD: Final = Struct(">I12xHxxHH")
HEAD_BYTES: Final = HEAD.size

IPV4: Final = 0x0800
IPV6: Final = 0x86DD
ARP: Final = 0x0806
ETHERNET_BYTES: Final = 14
LEAST_IP_BYTES: Final = 20
_IPV6_BYTES: Final = 40
_ARP_BYTES: Final = 28
_PADDED_BYTES: Final = 60  # the shortest frame on a wire

# The verdicts of ``judge``; above 0 is a number of bytes to skip.
FRAME: Final = 0
UNKNOWN: Final = -1
LOST: Final = -2


def fits(data: memoryview, at: int) -> bool:
    """Return whether a length and its frame begin at ``at``; ``data`` has ``HEAD_BYTES`` there."""
    length, kind, total, payload = HEAD.unpack_from(data, at)
    if kind == IPV4:
        inner = total if total >= LEAST_IP_BYTES else 0
    elif kind == IPV6:
        inner = _IPV6_BYTES + payload
    else:
        inner = _ARP_BYTES if kind == ARP else 0
    whole = ETHERNET_BYTES + inner
    return bool(inner) and (whole == length or whole < length <= _PADDED_BYTES)


def judge(data: memoryview, at: int, end: int, *, strict: bool) -> int:
    """Decide what begins at ``at`` in a stream that was read up to ``end``.

    At least ``LENGTH_BYTES`` were read from ``at`` on. With ``strict`` only a frame whose lengths
    match is accepted, otherwise one of an unknown protocol, too.

    Returns:
        ``FRAME``; or how many bytes to skip, which are lengths without frames; ``LOST``: no frame
        begins here or nearby; ``UNKNOWN``: too little was read.
    """
    length, place = LENGTH.unpack_from(data, at)[0], at
    while place + HEAD_BYTES <= end:
        if fits(data, place):
            return place - at
        if not MIN_FRAME_BYTES <= LENGTH.unpack_from(data, place)[0] <= MAX_FRAME_BYTES:
            break
        place += LENGTH_BYTES
    else:
        whole = at + LENGTH_BYTES + length
        if end < min(whole, place + HEAD_BYTES) and length <= MAX_FRAME_BYTES:
            return UNKNOWN
        if place > at + LENGTH_BYTES:  # only lengths were read
            return place - at
    if strict or length > MAX_FRAME_BYTES:
        return LOST
    seen = length >= MIN_FRAME_BYTES and at + HEAD_BYTES <= end
    return LOST if seen and HEAD.unpack_from(data, at)[1] in (IPV4, IPV6, ARP) else FRAME
