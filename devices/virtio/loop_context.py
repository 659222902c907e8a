# SPDX-License-Identifier: BSD-3-Clause
"""The context of a device in its process: descriptors, timers, and when their events are held."""

from __future__ import annotations

from devices.virtio.saved_state import SavedState
from sys_util.errors import GuestError
from sys_util.event_loop import EPOLLIN
from sys_util.typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.queue.worker import QueueWorker
    from sys_util.event_loop import EventLoop, Timer
    from sys_util.guest_memory import GuestMemory


class ConfigChanged(Protocol):
    """Tells the vmm of a changed configuration, as ``DeviceContext.config_changed``."""

    def __call__(self, *, by_driver: bool = False) -> None:
        """Tell it."""


class LoopContext:
    """``DeviceContext`` over the event loop of a device process."""

    def __init__(
        self,
        memory: GuestMemory,
        loop: EventLoop,
        worker: QueueWorker,
        serve_again: Callable[[], None],
        config_changed: ConfigChanged,
        on_guest_error: Callable[[GuestError], None],
        saved: SavedState | None = None,
    ) -> None:
        """``on_guest_error`` gets each ``GuestError`` that a callback of the device raises."""
        self.memory = memory
        self.saved = SavedState() if saved is None else saved
        self.counters = worker.counters
        self.port = worker.port
        self.serve_again = serve_again
        self.config_changed = config_changed
        self._loop = loop
        self._on_guest_error = on_guest_error
        self._fds: dict[int, tuple[Callable[[int], None], int]] = {}
        self._held: set[str] = set()  # why callbacks are held
        # Set by the process: sends a request for blocks to the vmm.
        self.ask_for_blocks: Callable[[int, int, int], None] = lambda *_change: None
        self._on_blocks: Callable[[bool], None] | None = None
        self._deferred: list[Callable[[], None]] = []  # timers that ran out while held

    def add_fd(self, fd: int, callback: Callable[[int], None], *, events: int = EPOLLIN) -> None:
        def guarded(ready: int) -> None:
            try:
                callback(ready)
            except GuestError as error:
                self._on_guest_error(error)

        if not self._held:
            self._loop.add(fd, guarded, events=events)
        self._fds[fd] = (guarded, events)

    def modify_fd(self, fd: int, events: int) -> None:
        self._fds[fd] = (self._fds[fd][0], events)
        if not self._held:
            self._loop.modify(fd, events)

    def remove_fd(self, fd: int) -> None:
        del self._fds[fd]
        if not self._held:
            self._loop.remove(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer: Timer

        def run() -> None:
            if self._held:
                timer.callback = run  # so that it can still be cancelled
                self._deferred.append(lambda: _run_timer(timer))
                return
            try:
                callback()
            except GuestError as error:
                self._on_guest_error(error)

        timer = self._loop.call_later(seconds, run)
        return timer

    def change_blocks(
        self, kind: int, first: int, count: int, then: Callable[[bool], None]
    ) -> None:
        self._on_blocks = then
        self.ask_for_blocks(kind, first, count)

    def blocks_changed(self, done: bool) -> None:
        """Pass on the vmm's answer to ``change_blocks``."""
        then, self._on_blocks = self._on_blocks, None
        if then is None:
            return
        try:
            then(done)
        except GuestError as error:
            self._on_guest_error(error)

    @property
    def held(self) -> tuple[str, ...]:
        """The reasons why no callback comes now; empty when callbacks come."""
        return tuple(sorted(self._held))

    def hold(self, reason: str) -> None:
        """Let no callback come until every reason is released."""
        if not self._held:
            for fd in self._fds:
                # With an empty set of events epoll would still report EPOLLHUP, again and again.
                self._loop.remove(fd)
        self._held.add(reason)

    def release(self, reason: str) -> None:
        """Take one reason away, if it holds; without any, callbacks come again."""
        if reason not in self._held:
            return
        self._held.remove(reason)
        if self._held:
            return
        for fd, (callback, events) in self._fds.items():
            self._loop.add(fd, callback, events=events)
        deferred, self._deferred = self._deferred, []
        for call in deferred:
            self._loop.call_later(0, call)


def _run_timer(timer: Timer) -> None:
    callback, timer.callback = timer.callback, None
    if callback is not None:
        callback()
