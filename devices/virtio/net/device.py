# SPDX-License-Identifier: BSD-3-Clause
"""virtio-net: an Ethernet card on a TAP of the host, or on user-mode networking (virtio 1.3 §5.1).

Queues:      0 receiveq1, 1 transmitq1, … 2N controlq
Features:    MAC, MTU, MRG_RXBUF, STATUS, CTRL_*, GUEST_ANNOUNCE, SPEED_DUPLEX; with a TAP all
             checksum and segmentation offloads that the host has; MQ
Config:      struct virtio_net_config up to duplex
Kept fds:    the queues of the TAP, or the socket to passt
"""

from __future__ import annotations

from devices.virtio.commands import DeviceLimits, SetLimits
from devices.virtio.counters import LimitWaits
from devices.virtio.limited import changed_limits
from devices.virtio.net.card import NetCard
from devices.virtio.net.ends import TapEnd
from devices.virtio.net.native import NativeReceive, NativeTap, NativeTransmit
from devices.virtio.net.pair import NetPair
from devices.virtio.net.stream import StreamEnd
from devices.virtio.queue import native
from devices.virtio.queue.servers import PortServer
from devices.virtio.rate_limiter import RateLimiter
from sys_util.typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.net.ends import EndGoneError
    from devices.virtio.net.state import NetSpec
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.wire import Message


class Net(NetCard):
    """Carry frames between the driver and the host."""

    seccomp_policy: ClassVar[str] = "net_device"
    in_order: ClassVar[bool] = True

    def __init__(self, spec: NetSpec, fds: Sequence[int], *, engine: bool | None = None) -> None:
        """Serve one end per pair, and take over ``fds``, the ends.

        With ``engine`` native code moves what frames it can of a TAP; by default, if it is built.
        """
        super().__init__(spec, [TapEnd(fd) if spec.tap else StreamEnd(fd) for fd in fds])
        self._limiters = (RateLimiter(spec.limits), RateLimiter(spec.limits))
        self._served: list[NetPair] = []
        engine = native.IS_BUILT if engine is None else engine
        taps = [end for end in self.ends if isinstance(end, TapEnd)] if engine else []
        self._native = [NativeTap(tap, self.stats) for tap in taps]

    def attach(self, context: DeviceContext) -> None:
        is_first = context.saved.is_empty
        super().attach(context)
        for number, limiter in enumerate(self._limiters):
            limiter.show_waits(LimitWaits(context.counters.cells, number))
        self._set_limits()
        if not is_first:
            for limiter in self._limiters:
                limiter.drain()  # the last process used them, and nobody knows how much
        stats, limiters = self.stats, self._limiters
        for number, end in enumerate(self.ends):
            tap = self._native[number] if self._native else None
            pair = NetPair(2 * number, end, stats, limiters, context, self._on_gone, tap)
            self._served.append(pair)
        self._pairs += self._served

    def make_server(self, queue: StartedQueue) -> QueueServer:
        index = queue.number
        if index == self.control_queue or index >= 2 * len(self._native):
            return PortServer(queue, self._serve)
        make = NativeTransmit if index % 2 else NativeReceive
        return PortServer(queue, self._serve, make(self._native[index // 2], queue))

    def _serve(self, index: int) -> bool:
        if index == self.control_queue:
            return self._serve_control()
        if index >= 2 * len(self._served):
            return False  # it is the control queue only with MQ, which was not negotiated
        pair = self._served[index // 2]
        if index % 2:
            return pair.on_transmit_kick()
        pair.on_receive_kick()
        return False

    def reset(self) -> None:
        for limiter in self._limiters:
            limiter.forget_waits()
        super().reset()

    def command(self, command: Command) -> Message:
        if not isinstance(command, SetLimits):
            return super().command(command)
        before = self._state.limits
        limits = changed_limits(before, command.values)
        if limits != before:
            self._change(limits=limits)
            self._set_limits()
            if self._context is not None:
                self._context.serve_again()
        return DeviceLimits(tuple(limits))

    def _set_limits(self) -> None:
        for limiter in self._limiters:
            limiter.configure(self._state.limits)
        for tap in self._native:
            tap.limited = any(limiter.active for limiter in self._limiters)

    def _on_gone(self, error: EndGoneError) -> None:
        """Show the guest a pulled cable, because the host's end is gone.

        Nothing here can get another: no process of a VM whose guest runs may start passt, or make
        a TAP.
        """
        self._log.error("%s: the guest's link is down until this VM is started again", error)
        self._change(link_up=False, announce=False)
        self._tell()
