# SPDX-License-Identifier: BSD-3-Clause
"""Where the vmm's log lines go: stderr, and syslog unless ``--no-syslog``.

We do not use syslog(3): it blocks while the daemon does not read, and it connects again after the
daemon was restarted, which the vmm's filter denies. Here one socket is made early, and lines that
it does not take are counted and dropped; stderr still gets every line. Before the guest runs, the
socket moves to the relay, and lines go to the relay through a pipe.
"""

from __future__ import annotations

import os
import time

from crosvm_py.relay.outlet import Outlet, open_outlet
from sys_util import log, socket
from sys_util.line_writer import LineWriter
from sys_util.nonblocking import PIPE_BUF
from sys_util.typing import Final

SYSLOG_SOCKET: Final = "/dev/log"

_USER_FACILITY: Final = 1 << 3  # syslog(3) LOG_USER
_SEVERITIES: Final = {log.ERROR: 3, log.WARNING: 4, log.INFO: 6, log.DEBUG: 7}


class Syslog:
    """The connection to the system's log daemon. Owns the socket or, later, the pipe's end."""

    def __init__(self, tag: str, path: str = SYSLOG_SOCKET) -> None:
        """Connect to the daemon.

        Raises:
            OSError: no daemon listens there.
        """
        self._tag = tag
        self._socket = socket.socket(
            socket.AF_UNIX,
            socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        )
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        time.localtime()  # reads the time zone file now: under the filter no file can be opened
        self.pipe_fd = -1
        self._pipe: LineWriter | None = None

    @classmethod
    def to_pipe(cls, tag: str, pipe_fd: int) -> None:
        """Write the lines of this process to stderr and to the relay's pipe, like another one."""
        syslog = cls.__new__(cls)
        syslog._tag = tag
        syslog.pipe_fd = pipe_fd
        syslog._pipe = LineWriter(pipe_fd, syslog._tell_lost)
        log.set_sink(syslog.write_both)

    @property
    def tag(self) -> str:
        """What the lines begin with."""
        return self._tag

    def write_both(self, level: int, module: str, text: str) -> None:
        """Write one line to stderr, and here."""
        log.stderr_sink(level, module, text)
        self.write(level, module, text)

    def write(self, level: int, module: str, text: str) -> None:
        """Send one line, or drop it if the daemon does not keep up or has ended."""
        line = self._line(level, module, text)
        if self._pipe is not None:
            self._pipe.write(line)
            return
        try:
            self._socket.send(line.encode("utf-8", "backslashreplace"))
        except OSError:
            return

    def hand_over(self) -> Outlet:
        """Write to a pipe from now on; return its other end and the socket, for the relay.

        Raises:
            HostError: the host makes no pipe.
        """
        self.pipe_fd, outlet = open_outlet(self._socket.detach(), PIPE_BUF)
        self._pipe = LineWriter(self.pipe_fd, self._tell_lost)
        return outlet

    def close(self) -> None:
        """Close the socket and the pipe; lines go to stderr only. May be called again."""
        log.set_sink(log.stderr_sink)
        self._socket.close()
        if self.pipe_fd >= 0:
            os.close(self.pipe_fd)
            self.pipe_fd = -1

    def _line(self, level: int, module: str, text: str) -> str:
        stamp = time.strftime("%b %e %H:%M:%S")
        head = f"<{_USER_FACILITY | _SEVERITIES[level]}>{stamp} {self._tag}[{os.getpid()}]: "
        return f"{head}[{module}] {text}"

    def _tell_lost(self, count: int) -> str:
        return self._line(log.WARNING, "log", log.describe_lost(count))


def configure(syslog_tag: str | None, path: str = SYSLOG_SOCKET) -> Syslog | None:
    """Send lines to stderr and, with a tag, to the log daemon if there is one; return that.

    stderr is opened again for this process alone, so that it can be made non-blocking.
    """
    log.STDERR.take_over()
    if syslog_tag is None:
        return None
    try:
        syslog = Syslog(log.printable(syslog_tag), path)
    except OSError:
        return None  # there is no log daemon, as in a container
    log.set_sink(syslog.write_both)
    return syslog
