# SPDX-License-Identifier: BSD-3-Clause
"""Where a guest's serial output goes: sinks that never make a vCPU wait.

A sink writes at once what the host accepts. It keeps up to ``BACKLOG_BYTES`` of the rest until the
event loop can write it, and drops what exceeds that. So a reader that stops reading loses output,
but uses no time and no more memory. When the reader is gone, the sink drops everything.

``targets`` opens the descriptors that sinks write to.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections import deque

from sys_util import log as logging
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sys_util.nonblocking import Send

log = logging.get_logger("crosvm.serial")

# The output of a busy console for minutes, and little compared with the vmm's own memory.
BACKLOG_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 64 * 1024


class Loop(Protocol):
    """The part of the event loop that a sink needs."""

    def add(self, fd: int, callback: Callable[[int], None], *, events: int = ...) -> None:
        """Call ``callback`` while ``fd`` is ready."""
        ...

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``."""
        ...

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` from the loop's thread."""
        ...


class Sink(Protocol):
    """A ``devices.serial.ByteSink`` that can be attached to a loop, drained and closed."""

    def write(self, data: bytes) -> None:
        """Take ``data``; never blocks, never raises."""
        ...

    def attach(self, loop: Loop, lock: AbstractContextManager[bool]) -> None:
        """Let ``loop`` write the backlog from now on, with ``lock`` held around every write."""
        ...

    def drain(self, seconds: float) -> None:
        """Write the backlog, and wait for the reader at most ``seconds``."""
        ...

    def close(self) -> None:
        """Close the descriptor, and log how much was dropped."""
        ...


class NullSink:
    """``type=sink``: drop all output."""

    def write(self, data: bytes) -> None:
        """Drop ``data``."""

    def attach(self, loop: Loop, lock: AbstractContextManager[bool]) -> None:
        """Do nothing."""

    def drain(self, seconds: float) -> None:
        """Do nothing: there is no backlog."""

    def close(self) -> None:
        """Do nothing: there is no descriptor."""


class StreamSink:
    """Write bytes to a descriptor, which ``send`` does without blocking. Owns the descriptor."""

    def __init__(
        self,
        name: str,
        fd: int,
        send: Send,
        *,
        close: Callable[[], None] | None = None,
        keeps_on: bool = False,
    ) -> None:
        """``keeps_on``: try to write again after an error, since it may pass (a full disk)."""
        self.name = name
        self._close: Callable[[], None] = close or functools.partial(os.close, fd)
        self.fd = fd
        self.dropped_bytes = 0
        self._send = send
        self._keeps_on = keeps_on
        self._backlog: deque[bytearray] = deque()
        self._backlog_bytes = 0
        self._gone = False
        self._why = "the reader is too slow"
        self._loop: Loop | None = None
        self._lock: AbstractContextManager[bool] | None = None
        self._armed = False  # the loop has been asked to write the backlog
        self._watched = False  # the loop watches the descriptor

    def write(self, data: bytes) -> None:
        """Write ``data`` now or later, or drop it."""
        if not self._backlog and not self._gone:
            try:
                taken = self._send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self._failed(error, len(data))
                return
            if taken == len(data):
                return
            data = data[taken:]
        self._keep(data)

    def attach(self, loop: Loop, lock: AbstractContextManager[bool]) -> None:
        """See ``Sink``."""
        self._loop, self._lock = loop, lock
        if self._backlog:
            self._arm()

    def drain(self, seconds: float) -> None:
        """See ``Sink``. For the end of the run: the loop has stopped for good."""
        self._loop = None
        if self.fd < 0:
            return
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        deadline = time.monotonic() + seconds
        while self._backlog:
            self._flush()
            remaining_ms = (deadline - time.monotonic()) * 1000
            if not self._backlog or remaining_ms <= 0 or not poller.poll(remaining_ms):
                return

    def close(self) -> None:
        """See ``Sink``. May be called again."""
        self._loop = None
        self._report(self._backlog_bytes)
        self._backlog.clear()
        self._backlog_bytes = 0
        self._gone = True
        if self.fd >= 0:
            self.fd = -1
            self._close()

    def _keep(self, data: bytes) -> None:
        if self._gone:
            return
        if self._loop is None and self._backlog:
            self._flush()  # there is no loop that would
        if self._backlog_bytes + len(data) > BACKLOG_BYTES:
            self.dropped_bytes += len(data)
            return
        self._backlog_bytes += len(data)
        if self._backlog and len(self._backlog[-1]) < CHUNK_BYTES:
            self._backlog[-1] += data
        else:
            self._backlog.append(bytearray(data))
        self._arm()

    def _flush(self) -> None:
        """Write as much of the backlog as the host accepts now."""
        while self._backlog:
            chunk = self._backlog[0]
            try:
                taken = self._send(chunk)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(error, self._backlog_bytes)
                return
            self._backlog_bytes -= taken
            if taken < len(chunk):
                del chunk[:taken]
            else:
                self._backlog.popleft()

    def _failed(self, error: OSError, lost_bytes: int) -> None:
        self.dropped_bytes += lost_bytes
        self._backlog.clear()
        self._backlog_bytes = 0
        if self._keeps_on:
            self._why = error.strerror or str(error)
        elif not self._gone:
            self._gone = True
            log.warning("%s: %s; output goes nowhere from here on", self.name, error.strerror)

    def _report(self, unwritten_bytes: int = 0) -> None:
        # Only when the reader reads again: our log may go to the same pipe.
        lost, self.dropped_bytes = self.dropped_bytes + unwritten_bytes, 0
        if lost and not self._gone:
            log.warning("%s: %d bytes dropped: %s", self.name, lost, self._why)

    # In the event loop.

    def _arm(self) -> None:
        if self._loop is not None and not self._armed:
            self._armed = True
            self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        if self._loop is None or self._lock is None:
            return
        with self._lock:
            if self._backlog and not self._watched:
                self._watched = True
                self._loop.add(self.fd, self._on_writable, events=select.EPOLLOUT)
            elif not self._backlog:
                self._armed = False

    def _on_writable(self, _events: int) -> None:
        if self._lock is None:
            return
        with self._lock:
            self._flush()
            drained = not self._backlog
            if drained:
                self._unwatch()
        if drained:
            self._report()

    def _unwatch(self) -> None:
        if self._watched and self._loop is not None:
            self._loop.remove(self.fd)
        self._armed = self._watched = False
