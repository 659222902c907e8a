# SPDX-License-Identifier: BSD-3-Clause
"""The socket of the REST API: made at a path, or inherited.

As in Cloud Hypervisor, a lock on PATH.lock says whether the socket is in use. Its file stays.
"""

from __future__ import annotations

import os

from crosvm_py.socket_path import BoundSocket, SocketUse, bind_socket
from sys_util import linux, socket
from sys_util.errors import ConfigError, HostError
from sys_util.modules import is_installed
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contextlib import ExitStack

    from crosvm_py.config import ApiSocketSpec

_USE: Final = SocketUse("--api-socket", socket.SOCK_STREAM)
_NEEDED: Final = ("httptools", "msgspec")


def check_packages() -> None:
    """See that the packages are there which a server of the API imports.

    Raises:
        ConfigError: some are missing.
    """
    missing = [name for name in _NEEDED if not is_installed(name)]
    if missing:
        packages = " and ".join(missing)
        raise ConfigError(f"--api-socket needs {packages}: pip install 'crosvm-py[ch]'")


def open_api_socket(spec: ApiSocketSpec, stack: ExitStack) -> BoundSocket:
    """Return the listening socket; ``stack`` closes it, removes its file and ends the lock.

    Raises:
        ConfigError: it is in use, or no socket that listens, or a package is missing.
        HostError: the host refuses to make it.
    """
    check_packages()
    if spec.fd >= 0:
        bound = BoundSocket(_inherited(spec.fd), "", 0, 0)
    else:
        stack.callback(os.close, _lock(f"{spec.path}.lock", spec.path))
        bound = bind_socket(spec.path, _USE)
        stack.callback(bound.unlink)
    stack.callback(bound.close)
    return bound


def _lock(lock_path: str, path: str) -> int:
    """Return the locked descriptor, close-on-exec; the lock lasts until all copies are closed."""
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError("open --api-socket", lock_path) from error
    try:
        is_free = linux.ofd_lock(fd, exclusive=True)
    except OSError as error:
        os.close(fd)
        raise HostError("lock --api-socket", lock_path) from error
    if not is_free:
        os.close(fd)
        raise ConfigError(f"--api-socket: {path}: in use, another VM has locked it")
    return fd


def _inherited(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=os.dup(fd))
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise HostError("use --api-socket", f"fd={fd}") from error
    if not listens or (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        sock.close()
        raise ConfigError(f"--api-socket: fd={fd} is not a UNIX stream socket that listens")
    sock.setblocking(False)
    return sock
