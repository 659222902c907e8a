# SPDX-License-Identifier: BSD-3-Clause
"""Write to pipes and terminals that other programs share, without ever waiting for a reader.

O_NONBLOCK belongs to the open file description, which whoever gave us the descriptor has as well:
setting it would break their programs. Where we may, the pipe or terminal is opened anew through
/proc, for a description of our own. Where we may not (one of another user), poll(2) goes before
each small write; then another process that writes to the same pipe in the same moment can make us
wait all the same.
"""

from __future__ import annotations

import os
import select
import stat

from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

# Writes what fits and says how much; BlockingIOError when nothing does.
Send: TypeAlias = "Callable[[bytes | bytearray], int]"

# A write of this size never blocks on a pipe that poll(2) calls writable, and is never torn.
PIPE_BUF: Final = select.PIPE_BUF

_PTMX: Final = os.makedev(5, 2)  # opening it anew would make another terminal


def reopen(fd: int, flags: int) -> int | None:
    """Return an own, non-blocking description of a pipe or terminal; None where that cannot be."""
    try:
        if os.fstat(fd).st_rdev == _PTMX:
            return None
        path = f"/proc/self/fd/{fd}"
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def write_polled(fd: int, limit: int = PIPE_BUF) -> Send:
    """Return a function that writes to a blocking descriptor, never more than fits."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)

    def send(data: bytes | bytearray) -> int:
        if not poller.poll(0):
            raise BlockingIOError
        return os.write(fd, data[:limit])

    return send


def take_over(fd: int) -> Send:
    """Make ``fd`` a descriptor to which this process writes without waiting; return how.

    A pipe or terminal gets a description of our own under the same number. The children of this
    process inherit that, and nobody else notices.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _SocketSend(fd)
    terminal = os.isatty(fd)
    if not (terminal or stat.S_ISFIFO(mode)):
        return lambda data: os.write(fd, data)  # a file: it has no reader who could stop
    own = reopen(fd, os.O_WRONLY)
    if own is None:
        return write_polled(fd, 1 if terminal else PIPE_BUF)  # one byte fits a writable terminal
    os.dup2(own, fd)
    os.close(own)
    return lambda data: os.write(fd, data)


class _SocketSend:
    """Write to a socket, whose descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        import socket

        self._socket = socket.socket(fileno=fd)
        self._flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

    def __call__(self, data: bytes | bytearray) -> int:
        return self._socket.send(data, self._flags)

    def __del__(self) -> None:
        self._socket.detach()
