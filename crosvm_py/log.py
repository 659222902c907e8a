# SPDX-License-Identifier: BSD-3-Clause
"""Where the vmm's log lines go: stderr, and syslog unless ``--no-syslog``.

Not through syslog(3): it blocks while the daemon does not read, and connects anew when the daemon
was restarted, which the vmm's seccomp filter does not allow. Here the one socket is made early, a
line that does not fit is dropped, and after a restart of the daemon stderr still has every line.
"""

from __future__ import annotations

import os
import socket
import time

from sys_util import log
from sys_util.typing import Final

SYSLOG_SOCKET: Final = "/dev/log"

_USER_FACILITY: Final = 1 << 3  # syslog(3) LOG_USER
_SEVERITIES: Final = {log.ERROR: 3, log.WARNING: 4, log.INFO: 6, log.DEBUG: 7}


class Syslog:
    """A datagram socket to the system's log daemon. Owns its socket."""

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

    def write(self, level: int, module: str, text: str) -> None:
        """Send one line, or drop it when the daemon is behind or gone."""
        stamp = time.strftime("%b %e %H:%M:%S")
        line = f"<{_USER_FACILITY | _SEVERITIES[level]}>{stamp} {self._tag}[{os.getpid()}]: "
        try:
            self._socket.send(f"{line}[{module}] {text}".encode("utf-8", "backslashreplace"))
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


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
