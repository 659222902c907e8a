# SPDX-License-Identifier: BSD-3-Clause
"""virtio-net: an Ethernet card on a TAP of the host, or on user-mode networking (virtio 1.3 §5.1).

Queues:      0 receiveq1, 1 transmitq1, … 2N controlq
Features:    MAC, MTU, MRG_RXBUF, STATUS, CTRL_*, GUEST_ANNOUNCE, SPEED_DUPLEX; with a TAP all
             checksum and segmentation offloads that the host has; MQ
Config:      struct virtio_net_config up to duplex
Kept fds:    the queues of the TAP, or the socket to passt
"""

from __future__ import annotations

from struct import Struct

from devices.virtio import net_features as bits
from devices.virtio.chain import ChainError
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.limited import changed_limits
from devices.virtio.net_control import ControlQueue
from devices.virtio.net_ends import StreamEnd, TapEnd
from devices.virtio.net_pair import NetPair
from devices.virtio.net_stats import NetStats
from devices.virtio.rate_limiter import RateLimiter, RateLimits
from sys_util.facts import fact
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.chain import DescriptorChain
    from devices.virtio.context import DeviceContext
    from devices.virtio.net_ends import EndGoneError, NetEnd
    from devices.virtio.port import QueuePort

VIRTIO_NET_S_LINK_UP: Final = 1
VIRTIO_NET_S_ANNOUNCE: Final = 2

QUEUE_SIZE: Final = 256
CONTROL_QUEUE_SIZE: Final = 64
MAX_PAIRS: Final = 16

# A TAP has no speed of its own: what Linux shows for virtio-net with vhost.
SPEED_MBPS: Final = 10_000
_FULL_DUPLEX: Final = 1

# mac, status, max_virtqueue_pairs, mtu, speed, duplex
_CONFIG: Final = Struct("<6sHHHIB")

LOG_LINES: Final = 10
LOG_SECONDS: Final = 5.0

# Commands are few; a driver that sends more waits for its next turn.
_MAX_COMMANDS_PER_TURN: Final = 16


@fact
class NetSpec:
    """One card as the vmm found that it can be. ``tap``: else the descriptor is a stream socket."""

    mac: bytes
    mtu: int
    pairs: int = 1
    tap: bool = True
    uso: bool = False
    limits: RateLimits = RateLimits()  # for each direction


class Net(SimpleDevice):
    """Carry frames between the driver and the host."""

    name: ClassVar[str] = "net"
    device_type: ClassVar[int] = 1
    seccomp_policy: ClassVar[str] = "net_device"
    in_order: ClassVar[bool] = True

    def __init__(self, spec: NetSpec, fds: Sequence[int]) -> None:
        """Serve one end per pair: ``fds``, which become ours."""
        self.queue_sizes = (QUEUE_SIZE,) * 2 * spec.pairs + (CONTROL_QUEUE_SIZE,)
        self.stats = NetStats()
        self._spec = spec
        self._limiters = (RateLimiter(spec.limits), RateLimiter(spec.limits))
        self._ends: list[NetEnd] = [TapEnd(fd) if spec.tap else StreamEnd(fd) for fd in fds]
        self._pairs: list[NetPair] = []
        self._context: DeviceContext | None = None
        self._link_up = True
        self._mac = spec.mac
        self._forget()
        self._log = get_logger("devices.virtio.net").limited(LOG_LINES, LOG_SECONDS)

    @property
    def own_queues(self) -> frozenset[int]:  # type: ignore[override]  # here it is not the kind's
        return frozenset(range(len(self.queue_sizes)))

    def features(self) -> int:
        features = bits.PLAIN_FEATURES
        if self._spec.tap:
            features |= bits.TAP_FEATURES
        if self._spec.uso:
            features |= bits.USO_FEATURES
        if self._spec.pairs > 1:
            features |= bits.mask(bits.VIRTIO_NET_F_MQ)
        return features

    def config(self) -> bytes:
        status = self._link_up * VIRTIO_NET_S_LINK_UP | self._announce * VIRTIO_NET_S_ANNOUNCE
        spec = self._spec
        return _CONFIG.pack(self._mac, status, spec.pairs, spec.mtu, SPEED_MBPS, _FULL_DUPLEX)

    def write_config(self, offset: int, data: bytes) -> None:
        """Nothing of it is the driver's to write (§5.1.4.2)."""

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        for end in self._ends:
            self._pairs.append(
                NetPair(
                    2 * len(self._pairs), end, self.stats, self._limiters, context, self._on_gone
                )
            )

    def activate(self, features: int) -> None:
        self._features = features
        self._control = ControlQueue(self, features, self._spec.pairs)
        self._active_pairs = 1
        for pair in self._pairs:
            pair.activate(features)
        self._set_carriers()
        self.set_guest_offloads(features)

    def reset(self) -> None:
        for pair in self._pairs:
            pair.reset()
        self._forget()

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        """Every queue is served by ``on_kick``."""

    def on_kick(self, index: int) -> bool:
        if self._context is None:
            return False
        # Without MQ the control queue comes after the first pair (§5.1.2).
        multi = self._features >> bits.VIRTIO_NET_F_MQ & 1
        if index == (2 * self._spec.pairs if multi else 2):
            port = self._context.port(index)
            return port is not None and self._serve_control(port)
        if index >= 2 * self._spec.pairs:
            return False  # a queue that is none without MQ
        pair = self._pairs[index // 2]
        if index % 2:
            return pair.on_transmit_kick()
        pair.on_receive_kick()
        return False

    def pause(self) -> None:
        for pair in self._pairs:
            pair.pause()

    def resume(self) -> None:
        """Let the network learn where we are: we may have been away for long."""
        if self._features >> bits.VIRTIO_NET_F_GUEST_ANNOUNCE & 1:
            self._announce = True
            self._tell()

    def command(self, verb: str, arguments: dict[str, object]) -> dict[str, object]:
        """``link`` with ``up``; ``limit`` with what shall change; ``stats``."""
        if verb == "link":
            up = arguments.get("up")
            if not isinstance(up, bool):
                raise CommandError("link: up or down is missing")
            self._set_link(up=up)
            return {}
        if verb == "limit":
            return self._limit(arguments)
        if verb == "stats":
            return self.stats.as_dict()
        raise CommandError(f"{self.name} devices know no {verb}")

    # ControlTarget

    def set_mac(self, mac: bytes) -> None:
        if mac != self._mac:
            self._mac = mac
            self._tell()

    def acknowledge_announce(self) -> None:
        if self._announce:
            self._announce = False
            self._tell()

    def set_pairs(self, pairs: int) -> None:
        self._active_pairs = pairs
        self._set_carriers()

    def set_guest_offloads(self, offloads: int) -> None:
        try:
            self._ends[0].set_offloads(bits.tun_offloads(offloads))
        except OSError as error:
            self._log.warning("offloads %#x: %s", offloads, error.strerror)

    def _forget(self) -> None:
        """Be as a new driver expects it; the link is the user's."""
        self._features = 0
        self._mac = self._spec.mac
        self._announce = False
        self._active_pairs = 1
        self._control = ControlQueue(self, 0, 1)

    def _serve_control(self, port: QueuePort) -> bool:
        for _ in range(_MAX_COMMANDS_PER_TURN):
            chain = port.take()
            if chain is None:
                if not port.wait():
                    return False
                continue
            try:
                self._control.handle_chain(chain)
            except ChainError as error:
                self._log.warning("controlq: %s", error)
            port.give_back(chain)
        port.flush()
        return True

    def _set_carriers(self) -> None:
        for number, pair in enumerate(self._pairs):
            try:
                pair.set_carrier(link_up=self._link_up, attached=number < self._active_pairs)
            except OSError as error:
                self._log.warning("TAP queue %d: %s", number, error.strerror)

    def _set_link(self, *, up: bool) -> None:
        if up != self._link_up:
            self._link_up = up
            self._announce = up and bool(self._features >> bits.VIRTIO_NET_F_GUEST_ANNOUNCE & 1)
            self._set_carriers()
            self._tell()

    def _limit(self, arguments: dict[str, object]) -> dict[str, object]:
        before = self._limiters[0].limits
        limits = changed_limits(before, arguments)
        if limits != before:
            for limiter in self._limiters:
                limiter.configure(limits)
            if self._context is not None:
                self._context.serve_again()
        return limits._asdict()

    def _on_gone(self, error: EndGoneError) -> None:
        """The host's end is no more: to the guest this is a cable that was pulled."""
        self._log.error("%s; the link is down", error)
        self._link_up = False
        self._tell()

    def _tell(self) -> None:
        if self._context is not None:
            self._context.config_changed()
