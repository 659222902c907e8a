# SPDX-License-Identifier: BSD-3-Clause
"""virtio-net whose frames the host's kernel moves between the rings and a TAP (vhost-net).

Queues:      the kernel serves the receive and transmit queues, this process the control queue
Features:    those of a card on a TAP; MRG_RXBUF where the kernel has it
Config:      as of every card
Kept fds:    the queues of the TAP, and /dev/vhost-net once for each pair
"""

from __future__ import annotations

from devices.virtio.features import BASE_FEATURES
from devices.virtio.net import features as bits
from devices.virtio.net.card import NetCard
from devices.virtio.net.ends import TapEnd
from devices.virtio.queue.servers import KernelServer, PortServer
from devices.virtio.queue.split_queue import QueueError
from sys_util.eventfd import create_eventfd, drain_eventfd, signal_eventfd
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.vhost import Vhost, VhostRing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.backend import QueueActivation
    from devices.virtio.context import DeviceContext
    from devices.virtio.net.state import NetSpec
    from devices.virtio.queue.servers import QueueServer, StartedQueue

_NO_BACKEND: Final = -1

# The features that concern the kernel; this process or the TAP implements the others.
_KERNEL_FEATURES: Final = BASE_FEATURES | bits.mask(bits.VIRTIO_NET_F_MRG_RXBUF)


class _Ring(NamedTuple):
    """A ring that the driver enabled, and the index at which the kernel goes on."""

    activation: QueueActivation
    next_avail: int


class KernelPair:
    """A receive and a transmit ring that one vhost device serves with one queue of the TAP."""

    def __init__(self, first_queue: int, end: TapEnd, vhost: Vhost, context: DeviceContext) -> None:
        """Take over ``vhost``, which has no owner yet."""
        self._first_queue = first_queue
        self._end = end
        self._vhost = vhost
        self._context = context
        self._rings: dict[int, _Ring] = {}
        self._carrier = True
        self._paused = False
        self._running = False
        self._error_fd = create_eventfd()
        vhost.set_owner()
        vhost.set_memory(context.memory)
        context.add_fd(self._error_fd, lambda _events: self._on_error())

    def activate(self, features: int) -> None:
        self._vhost.set_features(features & _KERNEL_FEATURES & self._vhost.features())

    def set_carrier(self, *, link_up: bool, attached: bool) -> None:
        self._stop()
        self._end.set_attached(attached=attached)
        self._carrier = link_up and attached
        self._start()

    def set_offloads(self, offloads: int) -> None:
        """Do nothing: the card tells the TAP, and vhost-net does not read headers."""

    def start_ring(self, activation: QueueActivation, next_avail: int) -> None:
        """Hand one more ring to the kernel."""
        self._stop()
        self._rings[activation.index] = _Ring(activation, next_avail)
        self._start()
        if activation.resume and activation.call_fd >= 0:
            # The kernel may have been stopped between a used buffer and its interrupt.
            signal_eventfd(activation.call_fd)

    def stop_ring(self, index: int) -> None:
        """Take a ring back."""
        self._stop()
        self._rings.pop(index, None)
        self._start()

    def pause(self) -> None:
        self._paused = True
        self._stop()

    def resume(self) -> None:
        """Let the kernel go on."""
        self._paused = False
        self._start()

    def reset(self) -> None:
        """Do nothing: ``stop_ring`` was called for every ring before."""

    def _start(self) -> None:
        if self._paused or not self._carrier or not self._rings:
            return
        vhost = self._vhost
        for index, (activation, next_avail) in self._rings.items():
            number = index - self._first_queue
            layout = (activation.desc_table, activation.avail_ring, activation.used_ring)
            ring = VhostRing(number, activation.size, *layout)
            vhost.set_ring(ring, next_avail, self._context.memory)
            vhost.set_eventfds(number, activation.kick_fd, activation.call_fd, self._error_fd)
            vhost.set_net_backend(number, self._end.fd)
            signal_eventfd(activation.kick_fd)  # earlier kicks were not noticed
        self._running = True

    def _stop(self) -> None:
        """Stop the kernel and note its position; after this nothing is in flight."""
        if not self._running:
            return
        self._running = False
        for index, ring in self._rings.items():
            number = index - self._first_queue
            self._vhost.set_net_backend(number, _NO_BACKEND)
            self._rings[index] = ring._replace(next_avail=self._vhost.ring_base(number))

    def _on_error(self) -> None:
        """Handle the kernel's report that a descriptor or an index makes no sense.

        Raises:
            QueueError: always; the device needs a reset.
        """
        drain_eventfd(self._error_fd)
        self._stop()
        raise QueueError("the host's kernel cannot go on with this ring")


class KernelNet(NetCard):
    """Set the kernel up, and carry out the driver's commands."""

    seccomp_policy: ClassVar[str] = "vhost_net_device"
    in_order: ClassVar[bool] = False  # the kernel does not offer it

    def __init__(self, spec: NetSpec, tap_fds: Sequence[int], vhosts: Sequence[Vhost]) -> None:
        """Take over a queue of the TAP and a vhost device for each pair."""
        ends = [TapEnd(fd) for fd in tap_fds]
        super().__init__(spec, ends)
        self._taps = ends
        self._vhosts = vhosts
        self._kernel_pairs: list[KernelPair] = []

    def features(self) -> int:
        unknown = _KERNEL_FEATURES & ~BASE_FEATURES & ~self._vhosts[0].features()
        return super().features() & ~unknown

    def attach(self, context: DeviceContext) -> None:
        super().attach(context)
        for number, (end, vhost) in enumerate(zip(self._taps, self._vhosts, strict=True)):
            self._kernel_pairs.append(KernelPair(2 * number, end, vhost, context))
        self._pairs += self._kernel_pairs

    def make_server(self, queue: StartedQueue) -> QueueServer:
        if queue.number == self.control_queue:
            return PortServer(queue, lambda _index: self._serve_control())
        return KernelServer(queue, self)

    def start_ring(self, activation: QueueActivation, next_avail: int) -> None:
        """See ``KernelRings``."""
        pair = self._pair(activation.index)
        if pair is not None:
            pair.start_ring(activation, next_avail)

    def stop_ring(self, index: int) -> None:
        """See ``KernelRings``."""
        pair = self._pair(index)
        if pair is not None:
            pair.stop_ring(index)

    def resume(self) -> None:
        for pair in self._kernel_pairs:
            pair.resume()
        super().resume()

    def _pair(self, index: int) -> KernelPair | None:
        """Return the pair of this queue; the last queue belongs to none."""
        number = index // 2
        return self._kernel_pairs[number] if number < len(self._kernel_pairs) else None
