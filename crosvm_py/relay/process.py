# SPDX-License-Identifier: BSD-3-Clause
"""The relay: it sends lines from pipes as datagrams, through sockets that are already connected.

It never blocks on a receiver. It reads from a pipe only what it can send; if the receiver is slow,
the pipe becomes full, and the writer notices. The relay ends when all writers have closed its
pipes.
"""

from __future__ import annotations

import os
import select
import time

from sys_util import socket
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.relay.outlet import Outlet

# The most time that receivers get for the last lines, once all writers have closed the pipes.
LAST_SECONDS: Final = 1.0

_READ_BYTES: Final = 4096
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class _Line(NamedTuple):
    text: bytes
    taken_bytes: int  # including the line end


class _Way:
    """Relays the lines of one outlet. Owns its descriptors."""

    def __init__(self, outlet: Outlet, epoll: select.epoll) -> None:
        self.outlet = outlet
        self.is_open = True
        self.is_last = False  # all writers have closed the pipe; it may still contain data
        self._socket = socket.socket(fileno=outlet.socket_fd)
        self._epoll = epoll
        self._waits_for = {outlet.pipe_fd: select.EPOLLIN}
        self._pending = bytearray()
        self._ended = False
        epoll.register(outlet.pipe_fd, select.EPOLLIN)

    def turn(self, fd: int, events: int) -> None:
        """Read once, and send as much as the socket takes."""
        if fd == self.outlet.pipe_fd and events & select.EPOLLHUP:
            self.is_last = True
        has_room = self._send()
        if has_room and not self._ended:
            self._read()
            has_room = self._send()
        if has_room and self._ended:
            self.close()
        elif has_room:
            self._wait({self.outlet.pipe_fd: select.EPOLLIN})
        else:  # wait for room in the socket; of the pipe we only want to know its end
            pipe = {} if self.is_last else {self.outlet.pipe_fd: 0}
            self._wait({self.outlet.socket_fd: select.EPOLLOUT, **pipe})

    def close(self) -> None:
        """Close both descriptors and drop what has not been sent."""
        self._wait({})
        os.close(self.outlet.pipe_fd)
        self._socket.close()
        self.is_open = False

    def _read(self) -> None:
        try:
            data = os.read(self.outlet.pipe_fd, _READ_BYTES)
        except BlockingIOError:
            return
        self._pending += data
        self._ended = not data

    def _send(self) -> bool:
        """Send all complete lines; return False if the socket has no room for one."""
        prefix = self.outlet.prefix
        while (line := self._next_line()) is not None:
            if line.text or not prefix:
                try:
                    self._socket.send(prefix + line.text, _FLAGS)
                except BlockingIOError:
                    return False
                except OSError:  # the receiver is gone, and the filter denies connect(2)
                    self._pending.clear()
                    self._ended = True
                    return True
            del self._pending[: line.taken_bytes]
        return True

    def _next_line(self) -> _Line | None:
        limit = self.outlet.max_line_bytes
        end = self._pending.find(b"\n", 0, limit + 1)
        taken = end + 1
        if end < 0:
            if len(self._pending) <= limit and not (self._ended and self._pending):
                return None
            end = taken = min(limit, len(self._pending))
        return _Line(bytes(self._pending[:end]).removesuffix(b"\r"), taken)

    def _wait(self, wanted: dict[int, int]) -> None:
        for fd in self._waits_for.keys() - wanted.keys():
            self._epoll.unregister(fd)
        for fd, events in wanted.items():
            if fd not in self._waits_for:
                self._epoll.register(fd, events)
            elif self._waits_for[fd] != events:
                self._epoll.modify(fd, events)
        self._waits_for = wanted


def run_relay(outlets: Sequence[Outlet], confine: Callable[[set[int]], None]) -> None:
    """Relay until all writers have closed the pipes. Owns the outlets' descriptors.

    ``confine`` gets the descriptors that have to stay open; it closes all others and confines the
    process.
    """
    epoll = select.epoll()
    ways = [_Way(outlet, epoll) for outlet in outlets]
    of_fd = {fd: way for way in ways for fd in (way.outlet.pipe_fd, way.outlet.socket_fd)}
    confine({epoll.fileno(), *of_fd})
    deadline = 0.0
    while left_open := [way for way in ways if way.is_open]:
        wait_seconds = None
        if all(way.is_last for way in left_open):
            deadline = deadline or time.monotonic() + LAST_SECONDS
            wait_seconds = deadline - time.monotonic()
            if wait_seconds <= 0:
                for way in left_open:
                    way.close()
                return
        for fd, events in epoll.poll(wait_seconds):
            if of_fd[fd].is_open:  # its other descriptor may have been ready, too, and closed it
                of_fd[fd].turn(fd, events)
