# SPDX-License-Identifier: BSD-3-Clause
"""The files of a device's listening sockets, which go with the device.

Whoever orders a device while the guest runs may have been taken over. So the warden removes no file
that it is told of: it asks each socket that came with the order for its own path, and removes what
is there only if it is a socket that was made for a VM, and the same one still.
"""

from __future__ import annotations

import os

from crosvm_py.socket_path import is_socket_of_a_vm, unlink_if_ours
from sys_util import socket
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class SocketFile(NamedTuple):
    """The file of one socket."""

    path: str
    dev: int
    ino: int

    def remove(self) -> None:
        """Remove it, unless another file has replaced it."""
        unlink_if_ours(self.path, self.dev, self.ino)


def socket_files(fds: Iterable[int]) -> tuple[SocketFile, ...]:
    """Return the files of those descriptors that are sockets with an absolute path."""
    return tuple(found for found in map(_file, fds) if found is not None)


def _file(fd: int) -> SocketFile | None:
    try:
        sock = socket.socket(fileno=fd)
        try:
            path = sock.getsockname()
        finally:
            sock.detach()  # it stays the caller's
        if not isinstance(path, str) or not path.startswith("/"):
            return None
        found = os.lstat(path)
    except OSError:  # it is no socket, or there is no such file
        return None
    if not is_socket_of_a_vm(found.st_mode):
        return None
    return SocketFile(path, found.st_dev, found.st_ino)
