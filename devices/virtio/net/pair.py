# SPDX-License-Identifier: BSD-3-Clause
"""A receive and a transmit queue with the host's end that they share, and when each is served.

The event loop waits for the host's end only while the driver has buffers for frames, or while a
frame of the driver waits to be sent: otherwise a busy network would wake this process in vain.
"""

from __future__ import annotations

from devices.virtio.net.ends import EndGoneError
from devices.virtio.net.receive import ReceiveQueue
from devices.virtio.net.transmit import TransmitQueue
from sys_util.event_loop import EPOLLIN, EPOLLOUT
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.context import DeviceContext
    from devices.virtio.net.ends import NetEnd
    from devices.virtio.net.native import NativeTap
    from devices.virtio.net.stats import NetStats
    from devices.virtio.rate_limiter import RateLimiter
    from sys_util.event_loop import Timer


class NetPair:
    """Queue ``first_queue``, which receives, and the next one, which transmits."""

    def __init__(
        self,
        first_queue: int,
        end: NetEnd,
        stats: NetStats,
        limiters: tuple[RateLimiter, RateLimiter],
        context: DeviceContext,
        on_gone: Callable[[EndGoneError], None],
        native: NativeTap | None = None,
    ) -> None:
        """``limiters``, for receiving and for sending, are shared by all pairs of the card.

        ``on_gone`` is called when the host's end is gone, and again whenever the user then sets the
        link up.
        """
        self._first_queue = first_queue
        self._features = 0
        self._end = end
        self._stats = stats
        self._context = context
        self._on_gone = on_gone
        self._gone: EndGoneError | None = None
        self._receive = ReceiveQueue(end, stats, limiters[0], native)
        self._transmit = TransmitQueue(end, stats, limiters[1], native)
        self._timer: Timer | None = None
        self._listening = False  # for frames of the host
        self._watched = 0  # the events that the loop waits for
        self._link_up = True

    def set_carrier(self, *, link_up: bool, attached: bool) -> None:
        """Let frames pass, or none.

        Raises:
            OSError: the host does not attach or detach the queue.
        """
        gone = self._gone
        if not gone:
            self._end.set_attached(attached=attached)
        came_up = link_up and not self._link_up
        self._link_up = link_up
        carrier = attached and link_up and not self._gone
        self._transmit.carrier = carrier
        if not carrier and self._transmit.blocked:
            self._context.serve_again()  # to drop the frame that waits for the host
        if carrier and came_up:
            self._guard(self._receive.drain)
        self._listening = carrier and not self._gone
        self._watch()
        if gone and link_up:
            self._on_gone(gone)

    def activate(self, features: int) -> None:
        """Take the negotiated features."""
        self._features = features

    def set_offloads(self, offloads: int) -> None:
        """Take the driver's GUEST_* features that are on now."""
        self._receive.set_offloads(offloads)

    def on_receive_kick(self) -> None:
        """Deliver frames: the driver has buffers for them."""
        if self._transmit.carrier:
            self._pump()

    def on_transmit_kick(self) -> bool:
        """Send frames of the driver; return whether there are more."""
        more = self._serve()
        self._watch()
        return more

    def pause(self) -> None:
        """Put back every chain that is held."""
        self._receive.pause()
        self._transmit.pause()

    def reset(self) -> None:
        """Forget the driver."""
        self._receive.start(None, 0)
        self._transmit.start(None, 0)
        self._listening = False
        self._watch()

    def _on_ready(self, events: int) -> None:
        if events & ~EPOLLIN and self._serve():
            self._context.serve_again()
        if events & ~EPOLLOUT and self._listening:
            self._pump()
        else:
            self._watch()

    def _serve(self) -> bool:
        port = self._context.port(self._first_queue + 1)
        if port is not self._transmit.port:
            self._transmit.start(port, self._features)
        more = self._guard(self._transmit.serve)
        self._try_again_after(self._transmit.retry_seconds)
        return more

    def _pump(self) -> None:
        port = self._context.port(self._first_queue)
        if port is not self._receive.port:  # the chains held belong to the old queue
            self._receive.start(port, self._features)
        self._listening = self._guard(self._receive.pump)
        if self._listening and self._end.buffered:
            self._context.serve_again()
        self._try_again_after(self._receive.retry_seconds)
        self._watch()

    def _try_again_after(self, seconds: float) -> None:
        """Ask for a turn in ``seconds``, unless they are 0 or a timer runs already."""
        if seconds and self._timer is None:
            self._timer = self._context.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._context.serve_again()

    def _guard(self, serve: Callable[[], bool | None]) -> bool:
        """Call ``serve``; if the host's end turns out to be gone, stop both queues."""
        try:
            return bool(serve())
        except EndGoneError as error:
            self._transmit.carrier = self._listening = False
            if not self._gone:
                self._gone = error
                self._on_gone(error)
            return False
        finally:
            self._stats.publish(self._context.counters)

    def _watch(self) -> None:
        """Wait for those events of the host's end that can be used now."""
        wanted = 0 if self._gone else self._listening * EPOLLIN
        if self._transmit.blocked and not self._gone:
            wanted |= EPOLLOUT
        if wanted == self._watched:
            return
        if not self._watched:
            self._context.add_fd(self._end.fd, self._on_ready, events=wanted)
        elif wanted:
            self._context.modify_fd(self._end.fd, wanted)
        else:
            self._context.remove_fd(self._end.fd)
        self._watched = wanted
