# SPDX-License-Identifier: BSD-3-Clause
"""controlq: the commands of a network driver (virtio 1.3 §5.1.6.5).

A command is checked and carried out as a whole, or answered with VIRTIO_NET_ERR. The filters that a
driver sets (receive modes, tables of addresses) are stored and not enforced: the host's bridge or
routes decide what a guest gets, and filtering here would cost time for each frame.
"""

from __future__ import annotations

from struct import Struct

from devices.virtio.net import features as bits
from devices.virtio.queue.chain import ChainError
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.queue.chain import DescriptorChain, Reader

VIRTIO_NET_OK: Final = 0
VIRTIO_NET_ERR: Final = 1

VIRTIO_NET_CTRL_RX: Final = 0
VIRTIO_NET_CTRL_RX_ALLMULTI: Final = 1
VIRTIO_NET_CTRL_MAC: Final = 1
VIRTIO_NET_CTRL_MAC_TABLE_SET: Final = 0
VIRTIO_NET_CTRL_MAC_ADDR_SET: Final = 1
VIRTIO_NET_CTRL_ANNOUNCE: Final = 3
VIRTIO_NET_CTRL_ANNOUNCE_ACK: Final = 0
VIRTIO_NET_CTRL_MQ: Final = 4
VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: Final = 0
VIRTIO_NET_CTRL_GUEST_OFFLOADS: Final = 5
VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: Final = 0

RX_MODES: Final = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")

MAC_BYTES: Final = 6
# The longest table; Linux goes promiscuous with much shorter ones.
MAX_TABLE_BYTES: Final = 64 * 1024

_COMMAND: Final = Struct("<BB")
_U8: Final = Struct("<B")
_U16: Final = Struct("<H")
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")


class ControlTarget(Protocol):
    """What commands change."""

    def set_mac(self, mac: bytes) -> None:
        """Show another address in the configuration."""

    def acknowledge_announce(self) -> None:
        """Note that the driver has announced itself."""

    def set_pairs(self, pairs: int) -> None:
        """Use this many pairs of queues; the device has them."""

    def set_guest_offloads(self, offloads: int) -> None:
        """Let frames come with these offloads; they were negotiated."""


class _RefusedError(Exception):
    """The command is answered with VIRTIO_NET_ERR."""


class ControlQueue:
    """Carry out the commands of one driver, which negotiated ``features``."""

    def __init__(self, target: ControlTarget, features: int, max_pairs: int) -> None:
        self.rx_modes: set[str] = set()
        self.table: tuple[bytes, ...] = ()
        self._target = target
        self._features = features
        self._max_pairs = max_pairs

    def handle_chain(self, chain: DescriptorChain) -> None:
        """Carry out one command and write its ack.

        Raises:
            ChainError: there is no byte for the ack.
        """
        reader, writer = chain.reader, chain.writer
        if not writer.remaining:
            raise ChainError(chain.head, "no byte for the ack")
        ack = VIRTIO_NET_OK
        try:
            group, command = reader.unpack(_COMMAND)
            self._carry_out(group, command, reader)
        except (ChainError, _RefusedError):
            ack = VIRTIO_NET_ERR
        writer.write(bytes([ack]))

    def _carry_out(self, group: int, command: int, reader: Reader) -> None:
        known = _COMMANDS.get((group, command))
        if known is None or not self._features >> known[0] & 1:
            raise _RefusedError
        known[1](self, reader)

    def _set_rx_mode(self, name: str, reader: Reader) -> None:
        (wanted,) = reader.unpack(_U8)
        if wanted > 1:
            raise _RefusedError
        if wanted:
            self.rx_modes.add(name)
        else:
            self.rx_modes.discard(name)

    def _set_table(self, reader: Reader) -> None:
        """Keep two tables of addresses, unicast and multicast (§5.1.6.5.2)."""
        table: list[bytes] = []
        for _ in range(2):
            (count,) = reader.unpack(_U32)
            if count * MAC_BYTES > MAX_TABLE_BYTES:
                raise _RefusedError
            macs = reader.read(count * MAC_BYTES)
            table += [macs[at : at + MAC_BYTES] for at in range(0, len(macs), MAC_BYTES)]
        self.table = tuple(table)

    def _set_mac(self, reader: Reader) -> None:
        mac = reader.read(MAC_BYTES)
        if mac[0] & 1 or not any(mac):
            raise _RefusedError
        self._target.set_mac(mac)

    def _acknowledge_announce(self, _reader: Reader) -> None:
        self._target.acknowledge_announce()

    def _set_pairs(self, reader: Reader) -> None:
        (pairs,) = reader.unpack(_U16)
        if not 1 <= pairs <= self._max_pairs:
            raise _RefusedError
        self._target.set_pairs(pairs)

    def _set_guest_offloads(self, reader: Reader) -> None:
        (offloads,) = reader.unpack(_U64)
        if offloads & ~(self._features & bits.GUEST_OFFLOADS):
            raise _RefusedError
        self._target.set_guest_offloads(offloads)


def _rx_mode(name: str) -> Callable[[ControlQueue, Reader], None]:
    return lambda queue, reader: queue._set_rx_mode(name, reader)


# Group and command, the feature that allows them, what is done.
_COMMANDS: Final[dict[tuple[int, int], tuple[int, Callable[[ControlQueue, Reader], None]]]] = {
    **{
        (VIRTIO_NET_CTRL_RX, command): (
            bits.VIRTIO_NET_F_CTRL_RX
            if command <= VIRTIO_NET_CTRL_RX_ALLMULTI
            else bits.VIRTIO_NET_F_CTRL_RX_EXTRA,
            _rx_mode(name),
        )
        for command, name in enumerate(RX_MODES)
    },
    (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET): (
        bits.VIRTIO_NET_F_CTRL_RX,
        ControlQueue._set_table,
    ),
    (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET): (
        bits.VIRTIO_NET_F_CTRL_MAC_ADDR,
        ControlQueue._set_mac,
    ),
    (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK): (
        bits.VIRTIO_NET_F_GUEST_ANNOUNCE,
        ControlQueue._acknowledge_announce,
    ),
    (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET): (
        bits.VIRTIO_NET_F_MQ,
        ControlQueue._set_pairs,
    ),
    (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET): (
        bits.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        ControlQueue._set_guest_offloads,
    ),
}
