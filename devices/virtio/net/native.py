# SPDX-License-Identifier: BSD-3-Clause
"""The queues of a card on a TAP served by the engine: what it is told, and counted after a turn.

A frame that the engine has taken from the TAP and cannot deliver goes back to ``TapEnd``, and so
does an error of the TAP: Python gets them from there as if they had come just now.
"""

from __future__ import annotations

from devices.virtio.counters import BYTES_FROM_GUEST, BYTES_TO_GUEST, INTERRUPTS, REQUESTS
from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue.split_queue import Handover
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.virtio.backend import QueueActivation
    from devices.virtio.counters import Counters
    from devices.virtio.net.ends import TapEnd
    from devices.virtio.net.stats import NetStats
    from sys_util.guest_memory import GuestMemory

try:
    from engine import native
except ModuleNotFoundError:  # it is not built; if it is broken, the exception ends the process
    IS_BUILT = False
else:
    IS_BUILT = True

MAX_FRAMES_PER_TURN: Final = 64
_GSO_TYPES: Final = 8  # in a list of them for the engine


class NativeTap:
    """What the engine knows of a pair of queues and its TAP; change it between two turns."""

    def __init__(self, end: TapEnd, stats: NetStats) -> None:
        """``end`` still owns its descriptor. Set ``limited`` while frames have a rate limit."""
        self.end = end
        self.stats = stats
        self.limited = False
        self.tap = native.new_tap()
        self.tap.fd = end.fd
        self._memory: native.EngineMemory | None = None

    def set_host_rules(self, gso_types: Iterable[int], *, checksums: bool) -> None:
        """Tell what the headers of the driver may contain."""
        self.tap.host_checksums = checksums
        self.tap.host_gso = _gso_list(gso_types)

    def set_guest_rules(self, gso_types: Iterable[int], flags: int) -> None:
        """Tell what the headers of frames from the host may contain."""
        self.tap.guest_flags = flags
        self.tap.guest_gso = _gso_list(gso_types)

    def memory(self, memory: GuestMemory) -> native.EngineMemory:
        """Return the guest's memory in the engine's form."""
        if self._memory is None:
            self._memory = native.EngineMemory(memory)
        return self._memory


class _NativeQueue:
    """One queue that the engine serves, a turn at a time."""

    RECEIVES: bool

    def __init__(
        self,
        tap: NativeTap,
        memory: GuestMemory,
        activation: QueueActivation,
        features: int,
        start: Handover,
    ) -> None:
        """Serve a queue that ``SplitQueue`` has checked, from ``start`` on."""
        layout = native.Layout(
            activation.desc_table,
            activation.avail_ring,
            activation.used_ring,
            activation.size,
            bool(features >> VIRTIO_RING_F_EVENT_IDX & 1),
            bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1),
        )
        self._tap = tap
        self._queue = native.NetQueue(
            tap.memory(memory),
            layout,
            native.Position(*start),
            activation.call_fd,
            tap.tap,
            receives=self.RECEIVES,
        )
        self._queue.limits.chains = MAX_FRAMES_PER_TURN

    @property
    def rests(self) -> bool:
        return self._tap.limited

    def close(self) -> None:
        """Do nothing: nothing is in flight between two turns."""

    def turn(self, counters: Counters) -> int:
        """Serve one turn and count it; see ``native.NetQueue.turn``."""
        outcome = self._queue.turn()
        done, cells = self._queue.done, counters.cells
        if done.chains:
            counters.requests = cells[REQUESTS] = counters.requests + done.chains
            counters.bytes_from_guest += done.bytes_from_guest
            counters.bytes_to_guest += done.bytes_to_guest
            cells[BYTES_FROM_GUEST] = counters.bytes_from_guest
            cells[BYTES_TO_GUEST] = counters.bytes_to_guest
            self._count_frames(done.frames, done.large)
        if done.interrupts:
            counters.interrupts = cells[INTERRUPTS] = counters.interrupts + done.interrupts
        return outcome

    def _count_frames(self, frames: int, large: int) -> None:
        """Count frames that were moved, of which some are large (GSO)."""
        raise NotImplementedError

    def take(self) -> Handover:
        """Return the position from which Python goes on."""
        return Handover(*self._queue.take())

    def give(self, start: Handover) -> None:
        """Go on from the position that Python has reached."""
        self._queue.give(native.Position(*start))


class NativeReceive(_NativeQueue):
    """A queue that receives."""

    RECEIVES = True

    def turn(self, counters: Counters) -> int:
        outcome = super().turn(counters)
        done = self._queue.done
        if done.frame_bytes:
            self._tap.end.return_frame(self._queue.frame())
        elif done.error:
            self._tap.end.return_error(done.error)
        return outcome

    def _count_frames(self, frames: int, large: int) -> None:
        self._tap.stats.rx_frames += frames
        self._tap.stats.rx_large += large


class NativeTransmit(_NativeQueue):
    """A queue that transmits."""

    RECEIVES = False

    def _count_frames(self, frames: int, large: int) -> None:
        self._tap.stats.tx_frames += frames
        self._tap.stats.tx_large += large


def _gso_list(gso_types: Iterable[int]) -> bytes:
    """Return GSO types for the engine; VIRTIO_NET_HDR_GSO_NONE, which is 0, fills the rest."""
    return bytes(sorted(gso_types, reverse=True)).ljust(_GSO_TYPES, b"\0")
