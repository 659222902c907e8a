# SPDX-License-Identifier: BSD-3-Clause
"""Write to pipes and terminals that other programs use too, without waiting for a reader.

O_NONBLOCK is a property of the open file description, which we share with the program that gave us
the descriptor. Setting it would break that program. Therefore we open the pipe or terminal again
through /proc, which gives us a description of our own. If that is not allowed, because it is
another user's, we call poll(2) before each small write. In that case we can still be made to wait,
by another process that writes to the same pipe at the same moment.
"""

from __future__ import annotations

import os
import select
import stat

from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

# It writes as much as fits and returns how much; it raises BlockingIOError if nothing fits.
Send: TypeAlias = "Callable[[bytes | bytearray], int]"

# If poll(2) says that a pipe is writable, a write of up to this size does not block. It is never
# split, so no other process can write between its bytes.
PIPE_BUF: Final = select.PIPE_BUF

_PTMX: Final = os.makedev(5, 2)  # opening it again would make another terminal


def reopen(fd: int, flags: int) -> int | None:
    """Open a pipe or terminal again, with O_NONBLOCK, and return the new descriptor.

    Return ``None`` if that is not possible.
    """
    try:
        if os.fstat(fd).st_rdev == _PTMX:
            return None
        path = f"/proc/self/fd/{fd}"
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def write_polled(fd: int, limit: int = PIPE_BUF) -> Send:
    """Return a function that writes to a blocking descriptor only if poll(2) says that it can.

    It writes at most ``limit`` bytes at a time.
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)

    def send(data: bytes | bytearray) -> int:
        if not poller.poll(0):
            raise BlockingIOError
        return os.write(fd, data[:limit])

    return send


def take_over(fd: int) -> Send:
    """Return a function that writes to ``fd`` without waiting, and prepare ``fd`` for it.

    For a pipe or terminal, ``fd`` then refers to an open file description of our own. Children of
    this process inherit it; other processes keep theirs.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _SocketSend(fd)
    terminal = os.isatty(fd)
    if not (terminal or stat.S_ISFIFO(mode)):
        return lambda data: os.write(fd, data)  # a file: a write does not wait for a reader
    own = reopen(fd, os.O_WRONLY)
    if own is None:
        return write_polled(fd, 1 if terminal else PIPE_BUF)  # one byte fits a writable terminal
    os.dup2(own, fd)
    os.close(own)
    return lambda data: os.write(fd, data)


class _SocketSend:
    """Write to a socket; the caller owns its descriptor."""

    def __init__(self, fd: int) -> None:
        from sys_util import socket

        self._socket = socket.socket(fileno=fd)
        self._flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

    def __call__(self, data: bytes | bytearray) -> int:
        return self._socket.send(data, self._flags)

    def __del__(self) -> None:
        self._socket.detach()
