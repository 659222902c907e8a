# SPDX-License-Identifier: BSD-3-Clause
"""What both vsock devices share: the one over UNIX sockets and the host kernel's."""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, optional, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort
    from sys_util.event_loop import Timer
    from sys_util.wire import Check

RX_QUEUE: Final = 0
TX_QUEUE: Final = 1
EVENT_QUEUE: Final = 2

VIRTIO_VSOCK_F_STREAM: Final = 0
VIRTIO_VSOCK_F_SEQPACKET: Final = 1
VIRTIO_VSOCK_F_NO_IMPLIED_STREAM: Final = 2

# The names of the counters that only the device over UNIX sockets has.
COUNTERS: Final = ("from_guest", "from_host", "refused", "resets")
FROM_GUEST, FROM_HOST, REFUSED, RESETS = range(len(COUNTERS))

VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: Final = 0

# The longest that a driver may take to close its connections.
PATIENCE_SECONDS: Final = 1.0

_EVENT: Final = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.to_bytes(4, "little")


# Hypervisor, loopback, host, and any (virtio 1.3 §5.10.4).
RESERVED_CIDS: Final = frozenset({0, 1, 2, 0xFFFF_FFFF})


@fact
class VsockSpec:
    """What the user asked for: the guest's address, and the socket of the host's side.

    Without ``socket`` the host's kernel serves the device. The device process never gets the path.
    """

    TYPE: ClassVar[int] = 19
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, optional(text(0)))
    cid: int
    socket: str | None = None


class TransportReset:
    """Tell the driver after a restart of the device that its connections are gone (§5.10.6.7).

    The old process alone knew the connections. A driver that learned of a new connection before it
    has closed the old ones would close the new one, too. So no connection is made while this is
    ``pending``. The driver has closed the old ones when it offers the buffer of the event again.
    The device waits for each step no longer than ``PATIENCE_SECONDS``.
    """

    def __init__(self) -> None:
        self.pending = False
        self.on_settled: Callable[[], None] = _nothing
        self._context: DeviceContext
        self._due = False
        self._early = False  # the driver may not have read all packets of the last process
        self._port: QueuePort | None = None
        self._held: list[DescriptorChain] = []  # of this queue, until the driver offers one more
        self._timer: Timer | None = None

    def attach(self, context: DeviceContext) -> None:
        """Take the device's context."""
        self._context = context

    def begin(self, *, early: bool = False) -> bool:
        """Begin, when a queue is resumed that an earlier process served.

        Return False if this has begun before. ``early``: send no event before ``allow``.
        """
        if self._timer is not None:
            return False
        self.pending = self._due = True
        self._early = early
        self._timer = self._context.call_later(PATIENCE_SECONDS, self._on_timeout)
        return True

    def allow(self) -> None:
        """Allow the event: the driver has read every packet of the last process."""
        if self._early:
            self._early = False
            port = self._context.port(EVENT_QUEUE)
            if port is not None and self.serve(port):
                self._context.serve_again()

    def _on_timeout(self) -> None:
        if self._early:
            self.allow()
            self._timer = self._context.call_later(PATIENCE_SECONDS, self._settle)
        else:
            self._settle()

    def reset(self) -> None:
        """Forget the driver."""
        self.pending = self._due = self._early = False
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()

    def serve(self, port: QueuePort) -> bool:
        """Send the event that is due once there is a buffer for it; return whether to go on."""
        if self._early or not (self._due or self.pending):
            return False
        if port is not self._port:
            self._port = port
            self._held.clear()  # they belong to a queue that was reset
        while (chain := port.take()) is not None:
            self._held.append(chain)
            if not self._due:  # the driver has handled the event
                self._settle()
                return False
        if self._due:
            self._send(port)
        if not self.pending:
            self._put_back()
        return port.wait()

    def _send(self, port: QueuePort) -> None:
        """Send the event in the first buffer that is large enough."""
        while self._held and self._due:
            chain = self._held.pop(0)
            if chain.writer.remaining >= len(_EVENT):
                chain.writer.write(_EVENT)
                self._due = False
            port.give_back(chain)
        port.flush()

    def _put_back(self) -> None:
        while self._held and self._port is not None:
            self._port.put_back(self._held.pop())

    def _settle(self) -> None:
        self._put_back()
        if self.pending:
            self.pending = False
            self.on_settled()


def _nothing() -> None:
    """Do nothing."""
