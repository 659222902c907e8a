# SPDX-License-Identifier: BSD-3-Clause
"""Lines to a descriptor whose reader may stop: whole, in order, and never waited for."""

from __future__ import annotations

import select
import time
from _thread import RLock

from sys_util.nonblocking import PIPE_BUF, take_over, write_polled
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_CUT: Final = "…\n".encode()


class LineWriter:
    """Write lines to ``fd``, which stays the caller's, from any thread.

    A line that does not fit is lost; the next one that fits comes together with one that says how
    many were lost. What is left of a line that was written in part, as terminals do, goes before
    all others.
    """

    def __init__(self, fd: int, tell_lost: Callable[[int], str]) -> None:
        """``tell_lost`` makes the line about a number of lost ones."""
        self._fd = fd
        self._send = write_polled(fd)
        self._tell_lost = tell_lost
        self._rest = b""
        self._lost = 0
        self._lock = RLock()  # a signal handler may log in the midst of a line

    def take_over(self) -> None:
        """Have a description of our own from now on, where that can be: see ``nonblocking``."""
        self._send = take_over(self._fd)

    def write(self, line: str, patience_seconds: float = 0.0) -> None:
        """Write a line, or lose it; wait for its reader no longer than ``patience_seconds``.

        It is cut to PIPE_BUF bytes, which a pipe takes as a whole or not at all. A reader that went
        away is nobody's error.
        """
        deadline = time.monotonic() + patience_seconds if patience_seconds else 0.0
        with self._lock:
            rest, self._rest = self._rest, b""
            if not self._put(rest, deadline):
                self._rest = rest
            before = _packed(self._tell_lost(self._lost), PIPE_BUF) if self._lost else b""
            if self._put(before + _packed(line, PIPE_BUF - len(before)), deadline):
                self._lost = 0
            else:
                self._lost += 1

    def _put(self, data: bytes, deadline: float) -> bool:
        """Write ``data``, or keep what is left of it; return False if nothing was written."""
        if self._rest:
            return False
        begun = not data
        while data:
            try:
                sent = self._send(data)
            except BlockingIOError:
                if deadline and self._wait(deadline):
                    continue
                self._rest = data if begun else b""
                return begun
            except OSError:
                return True
            data, begun = data[sent:], True
        return begun

    def _wait(self, deadline: float) -> bool:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _packed(line: str, room: int) -> bytes:
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    if len(data) <= room:
        return data
    whole = data[: room - len(_CUT)].decode("utf-8", "ignore")  # no half of a character
    return whole.encode() + _CUT
