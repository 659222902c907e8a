# SPDX-License-Identifier: BSD-3-Clause
"""Make listening UNIX sockets: only their user may connect, and nothing in use is replaced."""

from __future__ import annotations

import errno
import os
import stat
import struct

from sys_util import socket
from sys_util.errors import ConfigError, HostError
from sys_util.typing import Final, NamedTuple

# sockaddr_un.sun_path has 108 bytes, the last of them NUL.
MAX_PATH_BYTES: Final = 107

# The sticky bit has no meaning on a socket, so we use it to mark our own sockets. The broker of a
# vsock device refuses to connect to marked ones: if several VMs have sockets in one directory, the
# socket of one VM can have the name that means a port of another VM.
_MODE: Final = 0o600 | stat.S_ISVTX

_BACKLOG: Final = 64
_EXISTS: Final = "exists; remove it if no VM uses it, or name another path"
_ATTEMPTS: Final = 8
_UCRED: Final = struct.Struct("iII")  # pid, uid, gid
_NEW: Final = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


class SocketUse(NamedTuple):
    """The option that asks for a socket, and the type of the socket (SOCK_…)."""

    option: str
    kind: int


CONTROL: Final = SocketUse("--socket", socket.SOCK_SEQPACKET)


class BoundSocket:
    """A listening socket and its file. Owns the socket, not the file."""

    def __init__(self, sock: socket.socket, path: str, dev: int, ino: int) -> None:
        self.sock = sock
        self.path = path
        self.dev = dev
        self.ino = ino

    def close(self) -> None:
        """Close the socket. A forked process that does not serve it must close it at once."""
        self.sock.close()

    def unlink(self) -> None:
        """Remove the file."""
        unlink_if_ours(self.path, self.dev, self.ino)


def bind_control_socket(path: str) -> BoundSocket:
    """Listen at ``path``; in a directory, at ``crosvm-PID.sock`` in it.

    A stale socket, on which nobody listens, is replaced.

    Raises:
        ConfigError: something else is there, or the path is too long.
        HostError: the host refuses to make a socket there.
    """
    return bind_socket(control_socket_path(path), CONTROL)


def control_socket_path(path: str) -> str:
    """Return the path of this process's control socket if the user asks for ``path``."""
    return os.path.join(path, f"crosvm-{os.getpid()}.sock") if os.path.isdir(path) else path


def bind_socket(path: str, use: SocketUse, *, reserve_bytes: int = 0) -> BoundSocket:
    """Listen at ``path``, which must be short enough for a suffix of ``reserve_bytes``.

    Raises:
        ConfigError: something else is there, or the path is too long.
        HostError: the host refuses to make a socket there.
    """
    _check_length(path, use.option, reserve_bytes)
    for _ in range(_ATTEMPTS):
        bound = _try_bind(path, use)
        if bound is not None:
            return bound
        _remove_stale(path, use)
    raise ConfigError(f"{use.option}: {path}: other processes keep taking it")


def bind_new_socket(path: str, use: SocketUse, reserve_bytes: int = 0) -> BoundSocket:
    """Listen at ``path``, where nothing may be. Unlike ``bind_socket`` it connects to nothing.

    Raises:
        ConfigError: something is there, or the path is too long.
        HostError: the host refuses to make a socket there.
    """
    _check_length(path, use.option, reserve_bytes)
    sock = socket.socket(socket.AF_UNIX, use.kind | _NEW)
    try:
        os.fchmod(sock.fileno(), _MODE)  # see _try_bind
        sock.bind(path)
        sock.listen(_BACKLOG)
        found = os.lstat(path)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{use.option}: {path}: {_EXISTS}") from None
        raise HostError(f"bind {use.option}", path) from error
    return BoundSocket(sock, os.path.abspath(path), found.st_dev, found.st_ino)


def check_new(path: str, option: str) -> None:
    """Check that nothing is at ``path``.

    Raises:
        ConfigError: something is there.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{option}: {path}: {_EXISTS}")


def unlink_if_ours(path: str, dev: int, ino: int) -> None:
    """Remove the socket file, unless another file has replaced it; works in any process."""
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (dev, ino):
            os.unlink(path)
    except OSError:
        return


def is_socket_of_a_vm(mode: int) -> bool:
    """Return whether a file of this mode is a socket that ``bind_socket`` has made."""
    return stat.S_ISSOCK(mode) and bool(mode & stat.S_ISVTX)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the process that connected, or that listens (unix(7))."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return pid, uid, gid


def _check_length(path: str, option: str, reserve_bytes: int) -> None:
    length, limit = len(os.fsencode(path)), MAX_PATH_BYTES - reserve_bytes
    if length > limit:
        raise ConfigError(f"{option}: {path}: {length} bytes, a socket path has {limit}")


def _try_bind(path: str, use: SocketUse) -> BoundSocket | None:
    """Bind and listen, or return None if something is there already."""
    sock = socket.socket(socket.AF_UNIX, use.kind | _NEW)
    try:
        # Linux copies the mode of the socket's own inode to the file (unix_bind_bsd), so others
        # never have more access than this, whatever the umask is.
        os.fchmod(sock.fileno(), _MODE)
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise HostError(f"bind {use.option}", path) from error
    # Between bind and listen it looked stale, so another process may have replaced it.
    if _listener(path, use) != os.getpid():
        sock.close()
        return None
    # The connection made by _listener waits in the backlog; the server will find it closed.
    found = os.lstat(path)
    return BoundSocket(sock, os.path.abspath(path), found.st_dev, found.st_ino)


def _listener(path: str, use: SocketUse) -> int | None:
    """Return the pid of the process that listens at ``path``, or None if none does.

    Raises:
        ConfigError: we cannot find out, or it is another kind of socket.
    """
    with socket.socket(socket.AF_UNIX, use.kind | _NEW) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:
            return 0  # its backlog is full, so a process listens
        except OSError as error:
            raise ConfigError(f"{use.option}: {path}: is in use ({error.strerror})") from error
        return peer_credentials(probe)[0]


def _remove_stale(path: str, use: SocketUse) -> None:
    """Remove the socket at ``path`` if nobody listens on it.

    We rename it and then check again. If two processes find the same stale socket, the slower one
    may rename the new socket of the faster one; it then sees that a process listens on it, and puts
    it back.

    Raises:
        ConfigError: a process listens on it, or it is no socket.
        HostError: we may not remove it.
    """
    _refuse_if_in_use(path, use)
    aside = f"{path}.{os.getpid()}"
    try:
        os.rename(path, aside)
        handle = os.open(aside, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"replace {use.option}", path) from error
    try:
        if _listener(f"/proc/self/fd/{handle}", use) is not None:
            os.link(aside, path)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{use.option}: {path}: another process takes it, now {aside}") from error
    finally:
        os.close(handle)
    os.unlink(aside)


def _refuse_if_in_use(path: str, use: SocketUse) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{use.option}: {path}: exists and is not a socket")
    if _listener(path, use) is not None:
        raise ConfigError(f"{use.option}: {path}: in use, another VM listens there")
