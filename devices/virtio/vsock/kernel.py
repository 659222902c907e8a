# SPDX-License-Identifier: BSD-3-Clause
"""virtio-vsock served by the host's kernel and its AF_VSOCK sockets (virtio 1.3 §5.10).

Queues:      0 rx and 1 tx are the kernel's (vhost); 2 events for the driver
Features:    VIRTIO_VSOCK_F_SEQPACKET where the kernel has it
Config:      guest_cid, read-only
Kept fds:    /dev/vhost-vsock, opened again for each process
"""

from __future__ import annotations

import errno

from devices.virtio.device import SimpleDevice
from devices.virtio.features import BASE_FEATURES
from devices.virtio.queue.servers import KernelServer, PortServer
from devices.virtio.queue.split_queue import QueueError
from devices.virtio.vsock.common import (
    RX_QUEUE,
    TX_QUEUE,
    VIRTIO_VSOCK_F_SEQPACKET,
    TransportReset,
)
from sys_util.errors import HostError
from sys_util.eventfd import create_eventfd, drain_eventfd, signal_eventfd
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.vhost import Vhost, VhostRing

if TYPE_CHECKING:
    from devices.virtio.backend import QueueActivation
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from devices.virtio.vsock.common import VsockSpec

_RINGS: Final = frozenset((RX_QUEUE, TX_QUEUE))


class _Ring(NamedTuple):
    """A ring that the driver enabled, and the index at which the kernel goes on."""

    activation: QueueActivation
    next_avail: int


class KernelVsock(SimpleDevice):
    """Hand the rings to the kernel, and take them back."""

    name: ClassVar[str] = "vsock"
    device_type: ClassVar[int] = 19
    queue_sizes: ClassVar[tuple[int, ...]] = (256, 256, 64)
    seccomp_policy: ClassVar[str] = "vhost_vsock_device"
    in_order: ClassVar[bool] = False  # the kernel does not offer it

    def __init__(self, spec: VsockSpec, vhost: Vhost) -> None:
        """Take over ``vhost``, which has no owner yet."""
        self._cid = spec.cid
        self._vhost = vhost
        self._kernel_features = vhost.features()
        self._transport_reset = TransportReset()
        self._transport_reset.on_settled = self._start
        self._rings: dict[int, _Ring] = {}
        self._running = False
        self._paused = False
        self._error_fd = create_eventfd()
        self._context: DeviceContext

    def features(self) -> int:
        return self._kernel_features & 1 << VIRTIO_VSOCK_F_SEQPACKET

    def config(self) -> bytes:
        return self._cid.to_bytes(8, "little")

    def write_config(self, offset: int, data: bytes) -> None:
        """There is nothing to write."""

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        self._transport_reset.attach(context)
        self._claim_address()
        self._vhost.set_owner()
        self._vhost.set_memory(context.memory)
        context.add_fd(self._error_fd, lambda _events: self._on_error())

    def _claim_address(self) -> None:
        """Take the guest's address, which the end of the last process has freed."""
        try:
            self._vhost.set_guest_cid(self._cid)
        except OSError as error:
            hint = "another VM has it" if error.errno == errno.EADDRINUSE else ""
            raise HostError("claim", f"vsock address {self._cid}", hint) from error

    def activate(self, features: int) -> None:
        known = BASE_FEATURES | 1 << VIRTIO_VSOCK_F_SEQPACKET
        self._vhost.set_features(features & known & self._kernel_features)

    def make_server(self, queue: StartedQueue) -> QueueServer:
        if queue.number in _RINGS:
            return KernelServer(queue, self)
        return PortServer(queue, self._serve_events)

    def reset(self) -> None:
        self._transport_reset.reset()

    def start_ring(self, activation: QueueActivation, next_avail: int) -> None:
        """See ``KernelRings``."""
        if activation.resume:
            self._transport_reset.begin()
        self._stop()
        self._rings[activation.index] = _Ring(activation, next_avail)
        self._start()

    def stop_ring(self, index: int) -> None:
        """See ``KernelRings``."""
        self._stop()
        self._rings.pop(index, None)

    def pause(self) -> None:
        self._paused = True
        self._stop()

    def resume(self) -> None:
        self._paused = False
        self._start()

    def _serve_events(self, index: int) -> bool:
        port = self._context.port(index)
        if port is None:
            return False
        if port.resumed:
            port.resumed = False
            self._transport_reset.begin()
        return self._transport_reset.serve(port)

    def _start(self) -> None:
        """Let the kernel serve the rings, which it does only when it has both."""
        if self._paused or self._running or self._transport_reset.pending:
            return
        if self._rings.keys() != _RINGS:
            return
        vhost = self._vhost
        for number, (activation, next_avail) in self._rings.items():
            ring = VhostRing(
                number,
                activation.size,
                activation.desc_table,
                activation.avail_ring,
                activation.used_ring,
            )
            vhost.set_ring(ring, next_avail, self._context.memory)
            vhost.set_eventfds(number, activation.kick_fd, activation.call_fd, self._error_fd)
        vhost.set_vsock_running(running=True)
        self._running = True
        for activation, _ in self._rings.values():
            signal_eventfd(activation.kick_fd)  # earlier kicks were not noticed

    def _stop(self) -> None:
        """Stop the kernel and note its position; after this nothing is in flight."""
        if not self._running:
            return
        self._running = False
        self._vhost.set_vsock_running(running=False)
        for number, ring in self._rings.items():
            self._rings[number] = ring._replace(next_avail=self._vhost.ring_base(number))

    def _on_error(self) -> None:
        """Handle the kernel's report that a descriptor or an index makes no sense.

        Raises:
            QueueError: always; the device needs a reset.
        """
        drain_eventfd(self._error_fd)
        self._stop()
        raise QueueError("the host's kernel cannot go on with this ring")
