# SPDX-License-Identifier: BSD-3-Clause
"""receiveq: frames of the host into the driver's buffers (virtio 1.3 §5.1.6.3, §5.1.6.4).

The host's end stores a frame directly in guest memory. Its length is known only afterwards, so
chains for about the length of the last frames are held ready, followed by a buffer of this process
that takes the rest of a longer one. Without VIRTIO_NET_F_MRG_RXBUF one chain is held: a frame that
does not fit into it is dropped (§5.1.6.3.2).
"""

from __future__ import annotations

import time
from collections import deque

from devices.virtio.net.features import VIRTIO_NET_F_MRG_RXBUF
from devices.virtio.net.header import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    NUM_BUFFERS_AT,
)
from devices.virtio.net.offloads import GuestOffloads
from devices.virtio.net.vectors import cut_bytes
from devices.virtio.queue.engine_queue import ENGINE_MORE, ENGINE_PYTHON
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.net.ends import NetEnd
    from devices.virtio.net.native import NativeTap
    from devices.virtio.net.stats import NetStats
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.rate_limiter import RateLimiter

# The bounds of one turn. The second one is for drivers that offer only unusable chains.
MAX_FRAMES_PER_TURN: Final = 64
MAX_CHAINS_PER_TURN: Final = 4096

# IOV_MAX is 1024, and one vector is the buffer of this process.
_MAX_VECTORS: Final = 1023

# A frame may need more buffers than the driver has offered; then it holds all of them and waits for
# more, for this time at the most. Linux, when short of memory, tries every 0.5 s to add buffers.
MOST_WAIT_SECONDS: Final = 1.0
_NEXT_TURN_SECONDS: Final = 0.001


class ReceiveQueue:
    """One receive queue. ``port`` is ``None`` while the driver has not enabled it."""

    def __init__(
        self,
        end: NetEnd,
        stats: NetStats,
        limiter: RateLimiter,
        native: NativeTap | None = None,
    ) -> None:
        """With ``native`` the engine delivers what it can, as long as there is no limit."""
        self.port: QueuePort | None = None
        self.retry_seconds = 0.0  # if not 0: when to try again
        self._end = end
        self._limiter = limiter
        self._give_up_at = 0.0  # when to drop the current frame; 0: it does not wait yet
        self._unpaid_bytes = 0  # of the last frame, which is charged only after it has come
        self._stats = stats
        self._spill = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES))
        self._merge = False
        self._expected = 1
        self._native = native
        self.set_offloads(0)
        self._forget()

    def start(self, port: QueuePort | None, features: int) -> None:
        """Serve another port from now on; forget everything of the old one."""
        self.port = port
        self._merge = bool(features >> VIRTIO_NET_F_MRG_RXBUF & 1)
        if self._native is not None:
            self._native.tap.merge = self._merge
        self._forget()

    def set_offloads(self, offloads: int) -> None:
        """Take the driver's GUEST_* features that are on now."""
        self._offloads = GuestOffloads(offloads)
        self._strange_flags = ~self._offloads.flags
        self._gso_types = self._offloads.gso_types
        if self._native is not None:
            self._native.set_guest_rules(self._gso_types, self._offloads.flags)

    def pause(self) -> None:
        """Put back every chain that is held. A frame that is half stored is lost."""
        self._stats.rx_dropped += bool(self._rest)
        if self.port is not None:
            for chain in (*reversed(self._held), *reversed(self._filled)):
                self.port.put_back(chain)
        self._forget()

    def pump(self) -> bool:
        """Deliver some frames; return whether to wait for the host's end.

        If not, the driver has no buffers and will kick when it has some, or ``retry_seconds`` says
        when to try again: when the limiter lets frames pass, or a frame has waited long enough.

        Raises:
            QueueError: the queue is unusable.
        """
        port = self.port
        if port is None:
            return False
        self._chains_left = MAX_CHAINS_PER_TURN
        self.retry_seconds = 0.0
        frames = MAX_FRAMES_PER_TURN
        if self._native is not None and self._is_engines(port):
            ended = self._turn_of_engine(port, self._native)
            if ended != ENGINE_PYTHON:
                return ended == ENGINE_MORE
            frames = 1
        try:
            return self._deliver(port, frames)
        except BlockingIOError:
            pass  # no frame is left
        finally:
            port.flush()
            self._end.commit()
        return True

    def _deliver(self, port: QueuePort, frames: int) -> bool:
        """Deliver so many frames at most; return as ``pump``.

        Raises:
            BlockingIOError: no frame is left.
        """
        if self._rest and not self._store_rest(port):
            return False
        for _ in range(frames):
            if self._unpaid_bytes and not self._pay():
                return False
            if not self._hold(port):
                return self._chains_left == 0
            self._receive_next(port)
            if self._rest and not self._store_rest(port):
                return False
        return True

    def release(self, port: QueuePort) -> bool:
        """Put back the chains in which nothing is stored; return whether none is held now."""
        if self._rest or not port.put_back_all():
            return False
        self._held.clear()
        self._held_bytes = 0
        return True

    def drain(self) -> None:
        """Drop the frames that wait in the host, and the frame that is half stored."""
        if self._rest:
            self.pause()
        for _ in range(MAX_CHAINS_PER_TURN):
            try:
                self._end.receive([self._spill])
            except BlockingIOError:
                if not self._end.commit():
                    return
            except OSError:
                self._stats.rx_dropped += 1
            else:
                self._stats.rx_dropped += 1

    def _is_engines(self, port: QueuePort) -> bool:
        """Return whether the engine may deliver frames now."""
        if not port.has_engine or self._unpaid_bytes or self._end.buffered:
            return False
        return self.release(port)

    def _turn_of_engine(self, port: QueuePort, native: NativeTap) -> int:
        native.tap.expected = self._expected
        ended = port.turn_of_engine()
        self._expected = native.tap.expected
        return ended

    def _pay(self) -> bool:
        """Charge the last frame to the limiter; return False if the next one has to wait first."""
        queue = 0 if self.port is None else self.port.index
        if self._limiter.take(self._unpaid_bytes, queue):
            self._unpaid_bytes = 0
            return True
        self.retry_seconds = self._limiter.retry_seconds
        return False

    def _forget(self) -> None:
        self._held: deque[DescriptorChain] = deque()  # taken, with nothing stored yet
        self._held_bytes = 0
        self._expected = 1  # bytes of the next frame, a guess
        self._filled: list[DescriptorChain] = []  # chains of the current frame
        self._start: list[memoryview] = []  # memory of it, from its header on
        self._give_up_at = 0.0
        self._rest: memoryview = self._spill[:0]  # the part of it that is in no chain yet
        self._chains_left = 0

    def _hold(self, port: QueuePort) -> bool:
        """Hold as many chains as the next frame may need; return whether there is any."""
        while not self._held or (self._merge and self._held_bytes < self._expected):
            if not self._chains_left:
                break
            chain = port.take()
            if chain is None:
                if self._held or not port.wait():
                    break
                continue
            self._chains_left -= 1
            room = chain.writer.remaining
            if chain.reader.remaining or room < HEADER_BYTES:
                self._stats.rx_unusable += 1
                port.give_back(chain)
                continue
            self._held.append(chain)
            self._held_bytes += room
        return bool(self._held)

    def _receive_next(self, port: QueuePort) -> None:
        """Take one frame, or remove those that were taken from the host's end.

        Raises:
            BlockingIOError: there is no frame, and there was none to remove.
        """
        try:
            self._receive(port)
        except BlockingIOError:
            port.flush()
            if not self._end.commit():
                raise

    def _receive(self, port: QueuePort) -> None:
        """Take one frame into the chains held, and what does not fit there into ``_spill``.

        Raises:
            BlockingIOError: there is none.
        """
        vectors, room = self._vectors()
        try:
            length = self._end.receive([*vectors, self._spill])
        except BlockingIOError:
            raise
        except OSError:
            self._stats.rx_dropped += 1
            return
        self._expected = max(length, self._expected - (self._expected >> 4))
        stats = self._stats
        if length > self._held_bytes and not self._merge:
            stats.rx_dropped += 1  # the chain stays held, for the next one
            return
        head = vectors[0]
        flags, gso_type = (head[0], head[1]) if len(head) > 1 else cut_bytes(vectors, 2)
        strange = flags & self._strange_flags or gso_type not in self._gso_types
        if strange and not self._offloads.settle([*vectors, self._spill], length):
            stats.rx_dropped += 1
            return
        if gso_type:  # not VIRTIO_NET_HDR_GSO_NONE
            stats.rx_large += 1
        if self._limiter.active:
            self._unpaid_bytes = length - HEADER_BYTES
        self._start = vectors
        self._count(min(length, room), whole=length <= room)
        self._rest = self._spill[: max(0, length - room)]
        if not self._rest:
            self._finish(port)

    def _vectors(self) -> tuple[list[memoryview], int]:
        """Return the memory for a frame of the expected length, and its size in bytes."""
        vectors: list[memoryview] = []
        room = 0
        for chain in self._held:
            writer = chain.writer
            parts = writer.iovecs(writer.remaining)
            free = _MAX_VECTORS - len(vectors)
            if len(parts) > free:
                parts = parts[:free]
                room += sum(len(part) for part in parts)
                vectors += parts
                break
            room += writer.remaining
            vectors += parts
            if room >= self._expected:
                break
        return vectors, room

    def _count(self, length: int, *, whole: bool) -> None:
        """Count ``length`` bytes as stored in the chains held; with ``whole`` the frame ends."""
        held = self._held
        while length:
            chain = held[0]
            writer = chain.writer
            size = min(length, writer.remaining)
            writer.commit(size)
            length -= size
            self._held_bytes -= size
            if not writer.remaining or (whole and not length):
                self._held_bytes -= writer.remaining
                self._filled.append(held.popleft())

    def _store_rest(self, port: QueuePort) -> bool:
        """Copy the rest of a frame into more chains; return whether there were enough."""
        while self._rest:
            if not self._hold(port):
                return self._has_waited()
            writer = self._held[0].writer
            size = min(len(self._rest), writer.remaining)
            writer.write(self._rest[:size])
            self._rest = self._rest[size:]
            self._held_bytes -= size
            if not writer.remaining or not self._rest:
                self._held_bytes -= writer.remaining
                self._filled.append(self._held.popleft())
        self._finish(port)
        return True

    def _has_waited(self) -> bool:
        """Drop the current frame if it has waited too long for buffers; return whether it was."""
        if not self._chains_left:
            self.retry_seconds = _NEXT_TURN_SECONDS
            return False
        now = time.monotonic()
        if not self._give_up_at:
            self._give_up_at = now + MOST_WAIT_SECONDS
        self.retry_seconds = max(0.0, self._give_up_at - now)
        if self.retry_seconds:
            return False
        chains_left = self._chains_left
        self.pause()
        self._chains_left = chains_left
        return True

    def _finish(self, port: QueuePort) -> None:
        """Store the number of the frame's chains in its header, and give them back."""
        self._stats.rx_frames += 1
        self._give_up_at = 0.0
        filled = self._filled
        _store_16(self._start, NUM_BUFFERS_AT, len(filled))
        for chain in filled:
            port.give_back(chain)
        filled.clear()


def _store_16(vectors: list[memoryview], at: int, value: int) -> None:
    """Store a 16-bit number ``at`` bytes from the start of ``vectors``."""
    if len(vectors[0]) >= at + 2:  # so with every known driver
        vectors[0][at : at + 2] = value.to_bytes(2, "little")
        return
    data = value.to_bytes(2, "little")
    for vector in vectors:
        for byte in data[: max(0, len(vector) - at)]:
            vector[at] = byte
            data = data[1:]
            at += 1
        at -= len(vector)
        if not data:
            return
