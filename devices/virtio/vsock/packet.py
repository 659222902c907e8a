# SPDX-License-Identifier: BSD-3-Clause
"""The packets of virtio-vsock: their header, and how it is checked (virtio 1.3 §5.10.6)."""

from __future__ import annotations

from struct import Struct

from sys_util.enum import IntEnum, IntFlag
from sys_util.errors import GuestError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from devices.virtio.queue.chain import Reader

VMADDR_CID_HOST: Final = 2

# struct virtio_vsock_hdr: src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc,
# fwd_cnt.
_HEADER: Final = Struct("<QQIIIHHIII")
HEADER_BYTES: Final = 44

# The most data in one packet. Linux sends no more, and larger packets would only cost memory.
MAX_DATA_BYTES: Final = 64 * 1024


class SocketType(IntEnum):
    """The kinds of connection (§5.10.6.2)."""

    STREAM = 1
    SEQPACKET = 2


class Op(IntEnum):
    """What a packet says (§5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """Flags of ``SHUTDOWN``: what its sender will not do any more (§5.10.6.5)."""

    NOTHING = 0
    RECEIVE = 1
    SEND = 2
    BOTH = 3


# Flags of RW on a SEQPACKET connection (§5.10.6.7).
SEQ_EOM: Final = 1
SEQ_EOR: Final = 2

pack_header: Final = _HEADER.pack

_TYPES: Final = {int(kind): kind for kind in SocketType}
_OPS: Final = {int(op): op for op in Op}


class PacketError(GuestError):
    """A packet that makes no sense. ``header`` is set when a reset has to answer it."""

    def __init__(self, reason: str, header: Header | None = None) -> None:
        super().__init__(reason)
        self.header = header


class Header(NamedTuple):
    """A packet without its data. ``socket_type`` and ``op`` are unchecked numbers."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    socket_type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    def pack(self) -> bytes:
        """Return the header as bytes."""
        return _HEADER.pack(*self)


def read_header(reader: Reader, guest_cid: int) -> Header:
    """Read the header of the guest's packet from ``reader``, and check it on its own.

    Raises:
        PacketError: the packet is to be dropped, or answered by a reset.
        ChainError: the chain is too short for a header.
    """
    header = Header._make(reader.unpack(_HEADER))
    if header.src_cid != guest_cid:
        raise PacketError(f"packet from cid {header.src_cid:#x}, the guest is {guest_cid:#x}")
    if header.dst_cid != VMADDR_CID_HOST:
        raise PacketError(f"packet to cid {header.dst_cid:#x}, which is not the host")
    if header.socket_type not in _TYPES:
        raise PacketError(f"socket type {header.socket_type}", header)
    if header.op not in _OPS:
        raise PacketError(f"operation {header.op}", header)
    if header.length and header.op != Op.RW:
        raise PacketError(f"{header.length} bytes of data with {_OPS[header.op].name}", header)
    if header.length > MAX_DATA_BYTES:
        raise PacketError(f"{header.length} bytes of data, {MAX_DATA_BYTES} is the limit", header)
    if header.length > reader.remaining:
        raise PacketError(
            f"{header.length} bytes of data, the chain holds {reader.remaining}", header
        )
    return header


def reset_reply(header: Header) -> Header:
    """Return the RST that answers ``header``."""
    return Header(
        header.dst_cid,
        header.src_cid,
        header.dst_port,
        header.src_port,
        0,
        header.socket_type,
        Op.RST,
        0,
        0,
        0,
    )
