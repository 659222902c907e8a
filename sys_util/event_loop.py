# SPDX-License-Identifier: BSD-3-Clause
"""The event loop of every process: epoll(7), timers, and calls from other threads."""

from __future__ import annotations

import itertools
import os
import select
import time
from _heapq import heapify, heappop, heappush  # heapq itself reads a long file for it
from _thread import get_ident
from collections import deque

from sys_util.eventfd import create_eventfd, drain_eventfd, signal_eventfd
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT
EPOLLHUP = select.EPOLLHUP
EPOLLERR = select.EPOLLERR

# Cancelled timers stay in the heap until they are due. When it has this many timers, or twice as
# many as were left after the last time, the cancelled ones are removed.
_LEAST_TIMERS: Final = 64


class Timer:
    """A call that is still to come; made by ``EventLoop.call_later``."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None] | None) -> None:
        self.deadline = deadline
        self.callback = callback

    def cancel(self) -> None:
        """Forget the call; do nothing if it has happened already."""
        self.callback = None


class EventLoop:
    """Call back when descriptors are ready.

    It belongs to the thread that makes it. It does not own the descriptors that are added.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._most_timers = _LEAST_TIMERS
        self._order = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self._wake_fd = create_eventfd()
        self._signal_fds: tuple[int, ...] = ()
        self._running = False
        self._thread = get_ident()
        self.add(self._wake_fd, self._on_wake)

    def add(self, fd: int, callback: Callable[[int], None], *, events: int = EPOLLIN) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready (level-triggered)."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other ``events`` of a descriptor that was added."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget ``fd``; call it before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now, unless the timer is cancelled.

        May be called from any thread; the callback runs in the loop's.
        """
        timer = Timer(time.monotonic() + seconds, callback)
        if get_ident() == self._thread:
            self._push(timer)
        else:
            # Only the loop's thread changes the heap: the loop looks at the first timer and removes
            # it in two steps, and no other timer may become the first between them.
            self.call_soon_threadsafe(lambda: self._push(timer))
        return timer

    def _push(self, timer: Timer) -> None:
        timers = self._timers
        if len(timers) >= self._most_timers:
            timers[:] = [entry for entry in timers if entry[2].callback is not None]
            heapify(timers)
            self._most_timers = max(_LEAST_TIMERS, 2 * len(timers))
        heappush(timers, (timer.deadline, next(self._order), timer))

    @property
    def next_timer_seconds(self) -> float | None:
        """Seconds until the next timer is due: negative if it is overdue, None without a timer."""
        due = [deadline for deadline, _, timer in self._timers if timer.callback is not None]
        return min(due) - time.monotonic() if due else None

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Have the loop's thread call ``callback``; for other threads and signal handlers."""
        self._soon.append(callback)
        signal_eventfd(self._wake_fd)

    def wake_on_signals(self) -> None:
        """Run the Python handlers of signals at once; for the main thread's loop.

        Without this a signal that the kernel hands to another thread, or that comes just before
        epoll_wait(2), waits for the next event of any kind (signal.set_wakeup_fd). Call it again
        when another loop has had the signals meanwhile.
        """
        from sys_util import signal

        if not self._signal_fds:
            self._signal_fds = read_end, _ = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.add(read_end, lambda _events: _drain(read_end))
        signal.set_wakeup_fd(self._signal_fds[1], warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until ``stop`` is called."""
        self._running = True
        while self._running:
            self.run_once()

    def run_once(self, max_wait_seconds: float | None = None) -> None:
        """Wait for one round of events and serve it."""
        callbacks = self._callbacks
        ready = self._epoll.poll(self._wait_seconds(max_wait_seconds))
        # A callback may remove a descriptor whose event comes later in this round, and add a new
        # one with the same number. The event is not for the new one.
        for fd, events, callback in [(fd, events, callbacks.get(fd)) for fd, events in ready]:
            if callback is not None and callbacks.get(fd) is callback:
                callback(events)
        self._run_timers()

    def stop(self) -> None:
        """Let ``run`` return after the current round; call it only in the loop's thread."""
        self._running = False

    def close(self) -> None:
        """Close the loop's own descriptors."""
        if self._signal_fds:
            from sys_util import signal

            signal.set_wakeup_fd(-1)
        for fd in (self._wake_fd, *self._signal_fds):
            os.close(fd)
        self._epoll.close()

    def _wait_seconds(self, limit: float | None) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heappop(self._timers)
        if not self._timers:
            return limit
        until = max(0.0, self._timers[0][0] - time.monotonic())
        return until if limit is None else min(until, limit)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def _on_wake(self, _events: int) -> None:
        drain_eventfd(self._wake_fd)
        for _ in range(len(self._soon)):
            self._soon.popleft()()


def _drain(fd: int) -> None:
    """Empty the pipe of signal numbers; Python runs the handlers by itself."""
    os.read(fd, 4096)
