# SPDX-License-Identifier: BSD-3-Clause
"""The queues of a card on a TAP served by the engine: what it is told, and counted after a turn.

A frame that the engine has taken from the TAP and cannot deliver goes back to ``TapEnd``, and so
does an error of the TAP: Python gets them from there as if they had come just now.
"""

from __future__ import annotations

from devices.virtio.queue.native import (
    IS_BUILT,
    NativeMemory,
    NativeRing,
    count,
    layout_of,
    position_of,
)
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.virtio.counters import Counters
    from devices.virtio.net.ends import TapEnd
    from devices.virtio.net.stats import NetStats
    from devices.virtio.queue.servers import StartedQueue

if IS_BUILT:
    from engine import native

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
        self.memory = NativeMemory()

    def set_host_rules(self, gso_types: Iterable[int], *, checksums: bool) -> None:
        """Tell what the headers of the driver may contain."""
        self.tap.host_checksums = checksums
        self.tap.host_gso = _gso_list(gso_types)

    def set_guest_rules(self, gso_types: Iterable[int], flags: int) -> None:
        """Tell what the headers of frames from the host may contain."""
        self.tap.guest_flags = flags
        self.tap.guest_gso = _gso_list(gso_types)


class _FrameQueue(NativeRing):
    """One queue of frames that the engine serves, a turn at a time."""

    def __init__(self, tap: NativeTap, queue: StartedQueue, *, receives: bool) -> None:
        """Serve a queue from the position that it has now."""
        self._tap = tap
        self._queue = native.NetQueue(
            *(tap.memory.of(queue.memory), layout_of(queue), position_of(queue)),
            *(queue.activation.call_fd, tap.tap),
            receives=receives,
        )
        super().__init__(self._queue)
        self._queue.limits.chains = MAX_FRAMES_PER_TURN

    @property
    def rests(self) -> bool:
        return self._tap.limited

    def close(self) -> None:
        """Do nothing: nothing is in flight between two turns."""


class NativeReceive(_FrameQueue):
    """A queue that receives."""

    def __init__(self, tap: NativeTap, queue: StartedQueue) -> None:
        super().__init__(tap, queue, receives=True)

    def turn(self, counters: Counters) -> int:
        """Serve one turn and count it; see ``native.NetQueue.turn``."""
        outcome = self._queue.turn()
        done, tap = self._queue.done, self._tap
        count(counters, done.chains, done)
        tap.stats.rx_frames += done.frames
        tap.stats.rx_large += done.large
        if done.frame_bytes:
            tap.end.return_frame(self._queue.frame())
        elif done.error:
            tap.end.return_error(done.error)
        return outcome


class NativeTransmit(_FrameQueue):
    """A queue that transmits."""

    def __init__(self, tap: NativeTap, queue: StartedQueue) -> None:
        super().__init__(tap, queue, receives=False)

    def turn(self, counters: Counters) -> int:
        """Serve one turn and count it; see ``native.NetQueue.turn``."""
        outcome = self._queue.turn()
        done, stats = self._queue.done, self._tap.stats
        count(counters, done.chains, done)
        stats.tx_frames += done.frames
        stats.tx_large += done.large
        return outcome


def _gso_list(gso_types: Iterable[int]) -> bytes:
    """Return GSO types for the engine; VIRTIO_NET_HDR_GSO_NONE, which is 0, fills the rest."""
    return bytes(sorted(gso_types, reverse=True)).ljust(_GSO_TYPES, b"\0")
