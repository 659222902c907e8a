# SPDX-License-Identifier: BSD-3-Clause
"""Write whole lines, in order, to a descriptor whose reader may stop, and never wait for it."""

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
    """Write lines to ``fd``, which the caller owns, from any thread.

    A line that does not fit is lost. Before the next line that fits, another one says how many
    were lost. A terminal may take only the first part of a line: the rest of it is then written
    before anything else.
    """

    def __init__(self, fd: int, lost_line: Callable[[int], str]) -> None:
        """``lost_line`` makes the line that says how many lines were lost."""
        self._fd = fd
        self._send = write_polled(fd)
        self._lost_line = lost_line
        self._rest = b""
        self._lost = 0
        self._lock = RLock()  # a signal handler may log while its thread writes a line

    def take_over(self) -> None:
        """Use an open file description of our own from now on, if possible: see ``nonblocking``."""
        self._send = take_over(self._fd)

    def write(self, line: str, patience_seconds: float = 0.0) -> None:
        """Write a line, or lose it; wait for the reader no longer than ``patience_seconds``.

        The line is cut to PIPE_BUF bytes, which a pipe takes as a whole or not at all. It is no
        error if the reader has gone.
        """
        deadline = time.monotonic() + patience_seconds if patience_seconds else 0.0
        with self._lock:
            rest, self._rest = self._rest, b""
            if not self._put(rest, deadline):
                self._rest = rest
            before = _packed(self._lost_line(self._lost), PIPE_BUF) if self._lost else b""
            if self._put(before + _packed(line, PIPE_BUF - len(before)), deadline):
                self._lost = 0
            else:
                self._lost += 1

    def _put(self, data: bytes, deadline: float) -> bool:
        """Write ``data`` and keep the part that does not fit; return False if nothing fits."""
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
    # "ignore" drops half a character at the end.
    whole = data[: room - len(_CUT)].decode("utf-8", "ignore")
    return whole.encode() + _CUT
