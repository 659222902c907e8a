# SPDX-License-Identifier: BSD-3-Clause
"""virtio-vsock over UNIX sockets of the host (virtio 1.3 §5.10).

Queues:      0 rx and 1 tx, one packet in each chain; 2 events for the driver
Features:    VIRTIO_VSOCK_F_STREAM, VIRTIO_VSOCK_F_SEQPACKET, VIRTIO_VSOCK_F_NO_IMPLIED_STREAM
Config:      guest_cid, read-only
Kept fds:    the listening sockets, and the channel to the broker; while the guest runs, sockets of
             connections are accepted, or come from the broker
"""

from __future__ import annotations

from devices.virtio.device import SimpleDevice
from devices.virtio.queue.servers import PortServer
from devices.virtio.vsock.broker import UNIX_TYPES
from devices.virtio.vsock.common import (
    RX_QUEUE,
    TX_QUEUE,
    VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
    VIRTIO_VSOCK_F_SEQPACKET,
    VIRTIO_VSOCK_F_STREAM,
    TransportReset,
    VsockSpec,
)
from devices.virtio.vsock.muxer import Muxer
from devices.virtio.vsock.packet import HEADER_BYTES, SocketType
from sys_util import socket
from sys_util.errors import GuestError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.queue.servers import QueueServer, StartedQueue

# One turn of serving; after it other events are handled.
_PACKETS_PER_TURN: Final = 128


class Vsock(SimpleDevice):
    """Carry packets between the driver's queues and the connections of ``Muxer``."""

    name: ClassVar[str] = "vsock"
    device_type: ClassVar[int] = 19
    queue_sizes: ClassVar[tuple[int, ...]] = (256, 256, 64)
    seccomp_policy: ClassVar[str] = "vsock_device"
    in_order: ClassVar[bool] = True

    def __init__(self, spec: VsockSpec, fds: Sequence[int]) -> None:
        """Take over ``fds``: listening stream and SOCK_SEQPACKET sockets, the broker's channel."""
        self._cid = spec.cid
        stream, messages, channel = fds
        listeners = [
            (socket.socket(socket.AF_UNIX, UNIX_TYPES[socket_type], 0, fd), socket_type)
            for fd, socket_type in ((stream, SocketType.STREAM), (messages, SocketType.SEQPACKET))
        ]
        broker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, channel)
        self._muxer = Muxer(spec.cid, broker, listeners, self._schedule)
        self._transport_reset = TransportReset()
        self._transport_reset.on_settled = self._on_settled
        self._echo_due = False
        self._log = get_logger("devices.virtio.vsock").limited()
        self._context: DeviceContext
        self._scheduled = False
        self._tx_waits = False  # the tx queue has packets, for which no kick will come

    def close(self) -> None:
        """Close every socket, the listening ones too."""
        self._muxer.close()

    def features(self) -> int:
        return (
            1 << VIRTIO_VSOCK_F_STREAM
            | 1 << VIRTIO_VSOCK_F_SEQPACKET
            | 1 << VIRTIO_VSOCK_F_NO_IMPLIED_STREAM
        )

    def config(self) -> bytes:
        return self._cid.to_bytes(8, "little")

    def write_config(self, offset: int, data: bytes) -> None:
        """There is nothing to write."""

    def activate(self, features: int) -> None:
        types: set[int] = set()
        # Drivers that are older than this feature bit know only streams (§5.10.3).
        implied = not features >> VIRTIO_VSOCK_F_NO_IMPLIED_STREAM & 1
        if implied or features >> VIRTIO_VSOCK_F_STREAM & 1:
            types.add(SocketType.STREAM)
        if features >> VIRTIO_VSOCK_F_SEQPACKET & 1:
            types.add(SocketType.SEQPACKET)
        self._muxer.socket_types = frozenset(types)

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return PortServer(queue, self._serve)

    def reset(self) -> None:
        self._muxer.reset()
        self._transport_reset.reset()
        self._echo_due = False
        self._tx_waits = False

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        self._transport_reset.attach(context)
        self._muxer.attach(context)

    def _serve(self, index: int) -> bool:
        port = self._context.port(index)
        if port is None:
            return False
        if port.resumed:
            port.resumed = False
            if self._transport_reset.begin(early=True):
                self._muxer.begin_echo(self._transport_reset.allow)
                self._echo_due = True
        if index == RX_QUEUE:
            return self._serve_rx()
        if index == TX_QUEUE:
            more = self._serve_tx()
            return self._serve_rx() or more
        return self._transport_reset.serve(port)

    def _schedule(self) -> None:
        """Send the guest's packets at the end of this turn of the event loop."""
        if not self._scheduled:
            self._scheduled = True
            self._context.call_later(0, self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._serve_rx():
            self._schedule()

    def _on_settled(self) -> None:
        self._muxer.end_echo()
        self._schedule()

    def _ask_for_echo(self, port: QueuePort) -> bool:
        """Send a packet that the driver will answer; return whether to go on.

        The answer shows that the driver has read every packet of the last process. Only then may it
        get the event, because one of these packets could still open a connection.
        """
        while self._echo_due:
            chain = port.take()
            if chain is None:
                return port.wait()
            if chain.writer.remaining >= HEADER_BYTES and not chain.reader.remaining:
                chain.writer.write(self._muxer.echo_request())
                self._echo_due = False
            port.give_back(chain)
        port.flush()
        return False

    def _serve_rx(self) -> bool:
        """Fill receive buffers; return whether there is more to do at once."""
        port = self._context.port(RX_QUEUE)
        if port is None:
            return False
        if self._transport_reset.pending:
            return self._ask_for_echo(port)
        muxer = self._muxer
        more = self._fill_buffers(port)
        port.flush()
        if self._tx_waits and not muxer.is_congested:
            # No kick comes for packets that are left there, so serve the queue until it is empty.
            self._tx_waits = False
            if self._serve_tx():
                self._tx_waits = True
            more = True
        return more

    def _fill_buffers(self, port: QueuePort) -> bool:
        muxer = self._muxer
        for _ in range(_PACKETS_PER_TURN):
            if not muxer.has_output:
                return False
            chain = port.take()
            if chain is None:
                if not port.wait():
                    return False
            elif chain.writer.remaining <= HEADER_BYTES or chain.reader.remaining:
                self._context.counters.count_error()
                self._log.warning("vsock: a receive buffer of %d bytes", chain.writer.remaining)
                port.give_back(chain)
            elif muxer.fill(chain.writer):
                port.give_back(chain)
            else:
                port.put_back(chain)
        return muxer.has_output

    def _serve_tx(self) -> bool:
        """Take the driver's packets; return whether there are more."""
        port = self._context.port(TX_QUEUE)
        if port is None:
            return False
        muxer = self._muxer
        try:
            for _ in range(_PACKETS_PER_TURN):
                if muxer.is_congested:
                    self._tx_waits = True
                    return False
                chain = port.take()
                if chain is None:
                    if not port.wait():
                        return False
                    continue
                try:
                    muxer.take(chain.reader)
                except GuestError as error:
                    self._context.counters.count_error()
                    self._log.warning("vsock: %s", error)
                port.give_back(chain)
        finally:
            port.flush()
        return True
