# SPDX-License-Identifier: BSD-3-Clause
"""transmitq: the driver's frames to the host (virtio 1.3 §5.1.6.1, §5.1.6.2).

The header is copied once and checked; the frame is sent directly from guest memory.
"""

from __future__ import annotations

from devices.virtio.net.ends import EndGoneError
from devices.virtio.net.header import HEADER_BYTES, HeaderRules
from devices.virtio.queue.engine_queue import ENGINE_MORE, ENGINE_PYTHON
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from devices.virtio.net.ends import NetEnd
    from devices.virtio.net.native import NativeTap
    from devices.virtio.net.stats import NetStats
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.rate_limiter import RateLimiter

MAX_FRAMES_PER_TURN: Final = 64


class _Frame(NamedTuple):
    """A frame that was taken and not yet sent.

    ``chain`` is ``None`` when it was given back already; ``header`` is empty when the frame is
    malformed and must not be sent.
    """

    chain: DescriptorChain | None
    header: bytes
    parts: list[memoryview]
    readable_bytes: int


class TransmitQueue:
    """One transmit queue. ``port`` is ``None`` while the driver has not enabled it."""

    def __init__(
        self,
        end: NetEnd,
        stats: NetStats,
        limiter: RateLimiter,
        native: NativeTap | None = None,
    ) -> None:
        """With ``native`` the engine sends what it can, as long as there is no limit."""
        self.port: QueuePort | None = None
        self.carrier = True  # without it frames are dropped
        self.retry_seconds = 0.0  # if not 0: when the limiter lets frames pass again
        self._end = end
        self._stats = stats
        self._native = native
        self._rules = HeaderRules(0)
        self._limiter = limiter
        self._waiting: _Frame | None = None
        self._paid = False  # whether the limiter was charged for the waiting frame

    @property
    def blocked(self) -> bool:
        """Whether the host takes nothing now: serve again when its end can be written."""
        return self._end.unsent or (self._waiting is not None and not self.retry_seconds)

    def start(self, port: QueuePort | None, features: int) -> None:
        """Serve another port from now on; forget everything of the old one."""
        self.port = port
        self._rules = rules = HeaderRules(features)
        if self._native is not None:
            self._native.set_host_rules(rules.gso_types, checksums=rules.checksums)
        if self._waiting is not None and self._paid:
            self._limiter.give_back(self._waiting.readable_bytes - HEADER_BYTES)
        self._waiting = None
        self._paid = False

    def pause(self) -> None:
        """Put back the chain that is held, if any."""
        waiting = self._waiting
        if waiting is not None and waiting.chain is not None and self.port is not None:
            self._waiting = None
            self.port.put_back(waiting.chain)

    def serve(self) -> bool:
        """Send some frames; return whether there are more, which no kick will announce.

        Raises:
            QueueError: the queue is unusable.
            EndGoneError: the network is gone.
        """
        port = self.port
        self.retry_seconds = 0.0
        if port is None:
            return False
        frames = MAX_FRAMES_PER_TURN
        if self._is_engines(port):
            ended = port.turn_of_engine()
            if ended != ENGINE_PYTHON:
                return ended == ENGINE_MORE
            frames = 1
        try:
            return self._send_some(port, frames)
        finally:
            port.flush()

    def _send_some(self, port: QueuePort, frames: int) -> bool:
        """Send so many frames at most; return as ``serve``."""
        self._end.flush()
        for _ in range(frames):
            frame = self._waiting or self._next(port)
            if frame is None:
                if not port.wait():
                    return False
                continue
            self._waiting = frame
            if not (self._paid or self._pay(frame)):
                return False
            if frame.header:
                self._waiting = frame = self._give_back_first(frame, port)
                if not self._send(frame):
                    return False
            else:
                self._stats.tx_malformed += 1
            self._waiting = None
            self._paid = False
            if frame.chain is not None:
                port.give_back(frame.chain)
        return True

    def _is_engines(self, port: QueuePort) -> bool:
        """Return whether the engine may send frames now."""
        return self.carrier and self._waiting is None and port.has_engine

    def _next(self, port: QueuePort) -> _Frame | None:
        """Return the next frame, ``None`` when there is none now."""
        chain = port.take()
        if chain is None:
            return None
        reader = chain.reader
        whole = reader.remaining
        if whole >= HEADER_BYTES:
            header = self._rules.accept(reader.read(HEADER_BYTES), reader.remaining)
            if header is not None:
                return _Frame(chain, header, reader.iovecs(reader.remaining), whole)
        return _Frame(chain, b"", [], HEADER_BYTES)  # it costs an operation, but no bytes

    def _pay(self, frame: _Frame) -> bool:
        """Return whether the limiter lets a frame pass."""
        limiter = self._limiter
        queue = 0 if self.port is None else self.port.index
        if limiter.active and not limiter.take(frame.readable_bytes - HEADER_BYTES, queue):
            self.retry_seconds = limiter.retry_seconds
            return False
        self._paid = True
        return True

    def _give_back_first(self, frame: _Frame, port: QueuePort) -> _Frame:
        """Give back the chain of a frame that must not be sent twice, before it is sent.

        If the process is killed in between, the frame is lost.
        """
        if frame.chain is None or self._end.may_repeat(frame.parts):
            return frame
        parts = [memoryview(b"".join(frame.parts))]
        port.give_back(frame.chain)
        port.flush()
        return _Frame(None, frame.header, parts, frame.readable_bytes)

    def _send(self, frame: _Frame) -> bool:
        """Send a frame or drop it; return False if it has to wait."""
        stats = self._stats
        if not self.carrier:
            self._drop(frame)
            return True
        try:
            self._end.send(frame.header, frame.parts)
        except BlockingIOError:
            return False
        except OSError:
            self._drop(frame)
        except EndGoneError:
            self._drop(frame)
            self.carrier = False
            raise
        else:
            stats.tx_frames += 1
            stats.tx_large += frame.header[1] != 0
        return True

    def _drop(self, frame: _Frame) -> None:
        """Drop a frame: it costs an operation, but no bytes."""
        self._stats.tx_dropped += 1
        self._limiter.give_back(frame.readable_bytes - HEADER_BYTES)
