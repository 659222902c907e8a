# SPDX-License-Identifier: BSD-3-Clause
"""The part of a network card that is the same whoever moves the frames (virtio 1.3 §5.1).

It has configuration, link and control queue: everything but the pairs of receive and transmit
queues, which this process serves (``device.py``) or the host's kernel (``kernel.py``).
"""

from __future__ import annotations

from struct import Struct

from devices.virtio.commands import Obeyed, SetLink
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.net import features as bits
from devices.virtio.net.control import ControlQueue
from devices.virtio.net.ends import TapEnd
from devices.virtio.net.state import CardState
from devices.virtio.net.stats import NetStats
from devices.virtio.queue.chain import ChainError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.net.ends import NetEnd
    from devices.virtio.net.state import NetSpec
    from sys_util.wire import Message

VIRTIO_NET_S_LINK_UP: Final = 1
VIRTIO_NET_S_ANNOUNCE: Final = 2

QUEUE_SIZE: Final = 256
CONTROL_QUEUE_SIZE: Final = 64

# A TAP has no speed of its own; Linux shows this one for virtio-net with vhost.
SPEED_MBPS: Final = 10_000
_FULL_DUPLEX: Final = 1

# mac, status, max_virtqueue_pairs, mtu, speed, duplex
_CONFIG: Final = Struct("<6sHHHIB")

LOG_LINES: Final = 10
LOG_SECONDS: Final = 5.0

# Drivers send few commands; one that sends more waits for the next turn.
_MAX_COMMANDS_PER_TURN: Final = 16


class CardPair(Protocol):
    """A receive and a transmit queue, as the card sees them."""

    def activate(self, features: int) -> None:
        """Take the negotiated features."""

    def set_carrier(self, *, link_up: bool, attached: bool) -> None:
        """Let frames pass, or none. Raises ``OSError``: the host does not attach the queue."""

    def set_offloads(self, offloads: int) -> None:
        """Take the driver's GUEST_* features that are on now."""

    def pause(self) -> None:
        """Put back every chain that is held."""

    def reset(self) -> None:
        """Forget the driver."""


class NetCard(SimpleDevice):
    """The base of both cards; each adds its pairs and says who serves which queue."""

    name: ClassVar[str] = "net"
    device_type: ClassVar[int] = 1

    def __init__(self, spec: NetSpec, ends: Sequence[NetEnd]) -> None:
        """Serve one end per pair."""
        self.queue_sizes = (QUEUE_SIZE,) * 2 * spec.pairs + (CONTROL_QUEUE_SIZE,)
        self.stats = NetStats()
        self._spec = spec
        self.ends = ends
        self._pairs: list[CardPair] = []
        self._context: DeviceContext | None = None
        self._state = CardState.fresh(spec)
        self._control = ControlQueue(self, 0, 1)
        self._log = get_logger("devices.virtio.net").limited(LOG_LINES, LOG_SECONDS)

    @property
    def control_queue(self) -> int:
        """The index of the control queue: without MQ it comes after the first pair (§5.1.2)."""
        return 2 * self._spec.pairs if self._negotiated(bits.VIRTIO_NET_F_MQ) else 2

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
        state, spec = self._state, self._spec
        status = state.link_up * VIRTIO_NET_S_LINK_UP | state.announce * VIRTIO_NET_S_ANNOUNCE
        return _CONFIG.pack(state.mac, status, spec.pairs, spec.mtu, SPEED_MBPS, _FULL_DUPLEX)

    def write_config(self, offset: int, data: bytes) -> None:
        """Ignore it: the driver may not write to it (§5.1.4.2)."""

    def attach(self, context: DeviceContext) -> None:
        """Take up what an earlier process of the device has saved."""
        self._context = context
        self.stats.take_up(context.counters)
        taps = [end for end in self.ends if isinstance(end, TapEnd)]
        for end in taps if len(taps) > 1 else ():
            end.find_attached()
        context.saved.restore(self._restore)

    def _restore(self, fields: dict[str, object]) -> None:
        self._state = CardState.unpack(fields, self._spec)

    def activate(self, features: int) -> None:
        if features != self._state.features:  # else the driver is still that of the last process
            offloads = features & bits.GUEST_OFFLOADS
            self._forget_driver(features=features, offloads=offloads)
        self._control = ControlQueue(self, features, self._spec.pairs)
        for pair in self._pairs:
            pair.activate(features)
        self._set_carriers()
        self._set_offloads()

    def reset(self) -> None:
        for pair in self._pairs:
            pair.reset()
        self._control = ControlQueue(self, 0, 1)
        self._forget_driver()
        self._set_offloads()  # frames come before the next driver says which ones it wants

    def pause(self) -> None:
        for pair in self._pairs:
            pair.pause()

    def resume(self) -> None:
        """Ask the driver to announce itself: after a long pause switches may have forgotten it."""
        if self._negotiated(bits.VIRTIO_NET_F_GUEST_ANNOUNCE):
            self._change(announce=True)
            self._tell()

    def command(self, command: Command) -> Message:
        if not isinstance(command, SetLink):
            return super().command(command)
        self._set_link(up=command.up)
        if command.up and not self._state.link_up:
            raise CommandError(
                "the network behind the card is gone: the link is down until this VM is started "
                "again"
            )
        return Obeyed()

    # ControlTarget

    def set_mac(self, mac: bytes) -> None:
        if mac != self._state.mac:
            self._change(mac=mac)
            self._tell()

    def acknowledge_announce(self) -> None:
        if self._state.announce:
            self._change(announce=False)
            self._tell()

    def set_pairs(self, pairs: int) -> None:
        self._change(pairs=pairs)
        self._set_carriers()

    def set_guest_offloads(self, offloads: int) -> None:
        self._change(offloads=offloads)
        self._set_offloads()

    def _set_offloads(self) -> None:
        offloads = self._state.offloads
        for pair in self._pairs:
            pair.set_offloads(offloads)
        try:
            self.ends[0].set_offloads(bits.tun_offloads(offloads))
        except OSError as error:
            self._log.warning("offloads %#x: %s", offloads, error.strerror)

    def _negotiated(self, bit: int) -> bool:
        return bool(self._state.features >> bit & 1)

    def _change(self, **fields: object) -> None:
        """Change the state and save it for a restarted process.

        This comes before the answer to whoever asked for the change: after the answer, nobody asks
        for it again.
        """
        self._state = self._state._replace(**fields)  # type: ignore[arg-type]  # typed by callers
        if self._context is not None:
            self._context.saved.store(self._state.pack())

    def _forget_driver(self, *, features: int = 0, offloads: int = 0) -> None:
        """Return to the state for a new driver; keep link and limits, which the user has set."""
        fresh = CardState.fresh(self._spec)
        state = self._state
        self._change(
            **fresh._replace(
                link_up=state.link_up, limits=state.limits, features=features, offloads=offloads
            )._asdict()
        )

    def _serve_control(self) -> bool:
        """Carry out some commands; return whether there are more."""
        port = None if self._context is None else self._context.port(self.control_queue)
        if port is None:
            return False
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
        state = self._state
        for number, pair in enumerate(self._pairs):
            try:
                pair.set_carrier(link_up=state.link_up, attached=number < state.pairs)
            except OSError as error:
                self._log.warning("TAP queue %d: %s", number, error.strerror)

    def _set_link(self, *, up: bool) -> None:
        if up != self._state.link_up:
            announce = up and self._negotiated(bits.VIRTIO_NET_F_GUEST_ANNOUNCE)
            self._change(link_up=up, announce=announce)
            self._set_carriers()
            if self._state.link_up == up:  # else the host's end has turned out to be gone
                self._tell()

    def _tell(self) -> None:
        if self._context is not None:
            self._context.config_changed()
