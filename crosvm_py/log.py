# SPDX-License-Identifier: BSD-3-Clause
"""Where the vmm's log lines go: stderr, and syslog unless ``--no-syslog``.

Not through syslog(3): it blocks while the daemon does not read, and connects anew when the daemon
was restarted, which the vmm's seccomp filter does not allow. Here the one socket is made early, a
line that does not fit is counted, and after a restart of the daemon stderr still has every line.
When the guest is to run, the socket goes to the relay, and lines to a pipe that leads there.
"""

from __future__ import annotations

import os
import socket
import time

from crosvm_py.relay.outlet import Outlet, open_outlet
from sys_util import log
from sys_util.line_writer import LineWriter
from sys_util.nonblocking import PIPE_BUF
from sys_util.typing import Final

SYSLOG_SOCKET: Final = "/dev/log"

_USER_FACILITY: Final = 1 << 3  # syslog(3) LOG_USER
_SEVERITIES: Final = {log.ERROR: 3, log.WARNING: 4, log.INFO: 6, log.DEBUG: 7}


class Syslog:
    """The way to the system's log daemon. Owns its socket, or its end of a pipe."""

    def __init__(self, tag: str, path: str = SYSLOG_SOCKET) -> None:
        """Connect.

        Raises:
            OSError: nobody listens there.
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
        time.localtime()  # reads the time zone, while files can still be opened
        self.pipe_fd = -1
        self._pipe: LineWriter | None = None

    def write(self, level: int, module: str, text: str) -> None:
        """Send one line, or lose it when the daemon is behind or gone."""
        line = self._line(level, module, text)
        if self._pipe is not None:
            self._pipe.write(line)
            return
        try:
            self._socket.send(line.encode("utf-8", "backslashreplace"))
        except OSError:
            return

    def hand_over(self) -> Outlet:
        """Write to a pipe from now on; return its other end with the socket, for the relay.

        Raises:
            HostError: the host has no pipe for us.
        """
        self.pipe_fd, outlet = open_outlet(self._socket.detach(), PIPE_BUF)
        self._pipe = LineWriter(self.pipe_fd, self._tell_lost)
        return outlet

    def close(self) -> None:
        """Close what is open; lines go to stderr alone. May be called again."""
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
    """Send lines to stderr and, with a tag, to syslog where there is one; return that.

    stderr becomes a description of this process's own, so that nobody has to wait for its reader.
    """
    log.STDERR.take_over()
    if syslog_tag is None:
        return None
    try:
        syslog = Syslog(log.printable(syslog_tag), path)
    except OSError:
        return None  # a container, or a machine without a log daemon

    def both(level: int, module: str, text: str) -> None:
        log.stderr_sink(level, module, text)
        syslog.write(level, module, text)

    log.set_sink(both)
    return syslog
