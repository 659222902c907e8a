# SPDX-License-Identifier: BSD-3-Clause
"""Open what a guest's serial output goes to: stdout, files, sockets, the system log.

Terminals and pipes are shared with other programs, so we open them again for ourselves if that is
allowed (``sys_util.nonblocking``). All of this happens before the guest starts; nothing is opened
or connected later.

A file is created if it does not exist, and appended to, as in crosvm. ``unix`` is a datagram socket
that gets each line without its line end. If a disk is full, output is lost and the console goes on.
"""

from __future__ import annotations

import os
import stat
import time

from crosvm_py.console.output import StreamSink
from crosvm_py.relay.outlet import Outlet, open_outlet
from sys_util.errors import raise_host_error
from sys_util.nonblocking import PIPE_BUF, reopen, write_polled
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sys_util.nonblocking import Send

# crosvm waits for the socket without a limit. We do not, so that a mistyped path is reported.
CONNECT_SECONDS: Final = 2.0
CONNECT_STEP_SECONDS: Final = 0.01

# The longest line in a datagram, as in crosvm; longer ones are split.
MAX_LINE_BYTES: Final = 1024

_CONSOLE_PRIORITY: Final = 1 << 3 | 6  # syslog(3): LOG_USER, LOG_INFO


def _write_to(fd: int) -> Send:
    return lambda data: os.write(fd, data)


class Target(NamedTuple):
    """A descriptor to write to, and how. Whoever has the target owns the descriptor.

    ``kind`` is "stream" (write(2) does not block), "socket" (send with MSG_DONTWAIT), "polled" (at
    most ``write_limit`` bytes when poll(2) allows it) or "lines" (a datagram per line, which begins
    with ``prefix``). ``keeps_on``: try to write again after an error, since it may pass.
    """

    name: str
    fd: int
    kind: str = "stream"
    write_limit: int = 1
    prefix: bytes = b""
    keeps_on: bool = False


def sink_to(target: Target) -> StreamSink:
    """Make the sink that writes to ``target``, which is not "lines". It owns the descriptor now."""
    name, fd = target.name, target.fd
    if target.kind == "socket":
        from sys_util import socket

        connection = socket.socket(fileno=fd)
        return StreamSink(
            name,
            fd,
            lambda data: connection.send(data, socket.MSG_DONTWAIT),
            close=connection.close,
        )
    send = write_polled(fd, target.write_limit) if target.kind == "polled" else _write_to(fd)
    return StreamSink(name, fd, send, keeps_on=target.keeps_on)


def sink_through_relay(target: Target) -> tuple[StreamSink, Outlet]:
    """Make the sink that writes to a target of "lines", and its outlet for the relay.

    Raises:
        HostError: the host makes no pipe; the caller still owns the target.
    """
    fd, outlet = open_outlet(target.fd, MAX_LINE_BYTES, target.prefix)
    return StreamSink(target.name, fd, _write_to(fd)), outlet


def open_stream(fd: int, name: str) -> Target:
    """Return a target for an open descriptor; the caller keeps that, since it is duplicated.

    Raises:
        HostError: the descriptor is closed.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            return Target(name, os.dup(fd), "socket")
        terminal = os.isatty(fd)
        if stat.S_ISFIFO(mode) or terminal:
            own = reopen(fd, os.O_WRONLY)
            if own is not None:
                return Target(name, own)
            # poll(2) says that a terminal is writable if one byte fits.
            return Target(name, os.dup(fd), "polled", 1 if terminal else PIPE_BUF)
        # Not opened again: a file would then have an offset of its own.
        return Target(name, os.dup(fd), keeps_on=True)
    except OSError as error:
        raise_host_error("write to", name, error)


def stream_to(fd: int, name: str) -> StreamSink:
    """Make a sink for an open descriptor; the caller keeps that, since it is duplicated.

    Raises:
        HostError: the descriptor is closed.
    """
    return sink_to(open_stream(fd, name))


def inherited_fd(path: str) -> int | None:
    """Return N for ``/proc/self/fd/N``, ``/dev/fd/N`` and links to them, such as ``/dev/stdout``.

    Such a path names an open descriptor. We use that, because a socket cannot be opened by name.
    """
    fd = _named_fd(path)
    if fd is None and os.path.islink(path):
        fd = _named_fd(os.readlink(path))
    return fd


def _named_fd(path: str) -> int | None:
    for prefix in ("/proc/self/fd/", "/dev/fd/"):
        number = path.removeprefix(prefix)
        if number != path and number.isascii() and number.isdigit():
            return int(number)
    return None


def open_file(path: str) -> Target:
    """Open a file to append to, created if missing, or a FIFO, which need not have a reader yet.

    Raises:
        HostError: the file cannot be opened.
    """
    name = f"--serial path={path}"
    fd = inherited_fd(path)
    if fd is not None:
        return open_stream(fd, name)
    flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
            # We open it for reading, too, so that it neither waits for a reader nor ends with one.
            return Target(name, os.open(path, flags | os.O_RDWR))
        own = os.open(path, flags | os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        return Target(name, own, keeps_on=not os.isatty(own))
    except OSError as error:
        raise_host_error("open", name, error)


def open_unix(path: str, *, wait_seconds: float = CONNECT_SECONDS) -> Target:
    """Connect to the datagram socket at ``path``, to send lines.

    Raises:
        HostError: there is no such socket.
    """
    from sys_util import socket

    name = f"--serial type=unix,path={path}"
    try:
        return Target(name, _connect(path, socket.SOCK_DGRAM, wait_seconds), "lines")
    except OSError as error:
        raise_host_error("connect", name, error, "a datagram socket must be bound there")


def open_unix_stream(path: str, *, wait_seconds: float = CONNECT_SECONDS) -> Target:
    """Connect to the stream socket at ``path``, to send bytes.

    Raises:
        HostError: nobody listens there.
    """
    from sys_util import socket

    name = f"--serial type=unix-stream,path={path}"
    try:
        return Target(name, _connect(path, socket.SOCK_STREAM, wait_seconds), "socket")
    except OSError as error:
        raise_host_error("connect", name, error, "a stream socket must listen there")


def open_syslog(tag: str, path: str = "/dev/log") -> Target:
    """Connect to the log daemon, to send lines; it adds the time.

    Raises:
        HostError: there is no log daemon.
    """
    from sys_util import socket

    try:
        prefix = f"<{_CONSOLE_PRIORITY}>{tag}[{os.getpid()}]: "
        fd = _connect(path, socket.SOCK_DGRAM, 0.0)
        return Target("--serial type=syslog", fd, "lines", prefix=prefix.encode())
    except OSError as error:
        raise_host_error("connect", f"--serial type=syslog to {path}", error, "is syslog there?")


def _connect(path: str, kind: int, wait_seconds: float) -> int:
    """Connect a socket, wait for the other side if it does not exist yet; return a descriptor."""
    from crosvm_py.socket_path import MAX_PATH_BYTES
    from sys_util import socket

    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    directory_fd = -1
    deadline = time.monotonic() + wait_seconds
    try:
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            directory, base = os.path.split(path)
            directory_fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
            path = f"/proc/self/fd/{directory_fd}/{base}"
        while True:
            try:
                connection.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(CONNECT_STEP_SECONDS)
            else:
                return connection.detach()
    finally:
        connection.close()
        if directory_fd >= 0:
            os.close(directory_fd)
