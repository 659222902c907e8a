# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of vsock: bind its sockets or open the kernel's device, before the fork."""

from __future__ import annotations

import errno
import os

from crosvm_py.socket_path import MAX_PATH_BYTES, SocketUse, bind_new_socket, bind_socket, check_new
from sys_util import socket
from sys_util.errors import ConfigError, HostError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple
from sys_util.vhost import Vhost

if TYPE_CHECKING:
    from crosvm_py.socket_path import BoundSocket

OPTION: Final = "--vsock"

KERNEL_DEVICE: Final = "/dev/vhost-vsock"
_INSTEAD: Final = "load the module (modprobe vhost_vsock), or give socket=PATH, which needs none"
_PERMISSION: Final = "join the group that owns it, or give socket=PATH, which needs no device"

# Beside the stream socket there are one of type SOCK_SEQPACKET, with this suffix, and the sockets
# with "_<port>", which programs on the host make.
SEQPACKET_SUFFIX: Final = ".seqpacket"
_LONGEST_PORT: Final = len("_4294967295")

_STREAM: Final = SocketUse(OPTION, socket.SOCK_STREAM)
_SEQPACKET: Final = SocketUse(OPTION, socket.SOCK_SEQPACKET)

_REMOVED: Final = "the working directory was removed; give an absolute path"

_WORLD_WRITABLE: Final = 0o002

log = get_logger("crosvm.run")


class SocketDirectory(NamedTuple):
    """The directory of the sockets: a descriptor, which the caller owns, and its user and group.

    ``name`` is the name of the device's own socket in it.
    """

    fd: int
    name: str
    uid: int
    gid: int


def open_kernel_device(cid: int) -> int:
    """Return a descriptor of the kernel's device; the warden opens it again for each process.

    The device process claims the address itself, so that the address is free for the next process
    when it has ended. Here we only check that it is free now.

    Raises:
        ConfigError: another VM has the address, or the kernel has no vsock.
        HostError: the host refuses it.
    """
    fd = _open_fresh()
    try:
        Vhost(fd).set_guest_cid(cid)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{OPTION}: cid {cid} is in use by another VM") from None
        raise HostError(f"claim cid {cid} for {OPTION}", KERNEL_DEVICE) from error
    finally:
        os.close(fd)
    return _open_fresh()


def _open_fresh() -> int:
    try:
        return os.open(KERNEL_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f"{OPTION}: there is no {KERNEL_DEVICE}; {_INSTEAD}") from None
    except OSError as error:
        raise HostError(f"open for {OPTION}", KERNEL_DEVICE, _PERMISSION) from error


def open_sockets(
    path: str, option: str = OPTION, *, replace_stale: bool = True
) -> tuple[tuple[BoundSocket, ...], SocketDirectory]:
    """Bind the device's sockets, and open their directory for the broker.

    The broker keeps using that directory even if it is moved or replaced later. With
    ``replace_stale`` sockets at which nobody listens are replaced; otherwise nothing may be there.

    Raises:
        ConfigError: a socket is in use, or cannot be made.
        HostError: the host refuses something.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{option}: {path}: is a directory")
    folder, name = os.path.split(path)
    folder = folder or "."
    directory_fd = _open_directory(folder, option)
    try:
        found = os.fstat(directory_fd)
        if not found.st_nlink:
            raise ConfigError(f"{option}: {path}: {_REMOVED}")
        path = _absolute(path)
        sockets = _bind(path) if replace_stale else _bind_new(path, option)
    except (ConfigError, HostError):
        os.close(directory_fd)
        raise
    if found.st_mode & _WORLD_WRITABLE:
        log.warning(
            "%s: every user can put sockets into %s, where the guest reaches those that are "
            "called as its own; a directory of its own is safer",
            option,
            folder,
        )
    return sockets, SocketDirectory(directory_fd, name, found.st_uid, found.st_gid)


def _absolute(path: str) -> str:
    """Return the absolute path, if it is short enough for a socket.

    The warden asks a socket for its path, to remove its file with the device.
    """
    whole = os.path.abspath(path)
    return whole if len(os.fsencode(whole)) <= MAX_PATH_BYTES - _LONGEST_PORT else path


def _open_directory(path: str, option: str) -> int:
    """Return an O_PATH descriptor: it can be used to look up names in the directory only."""
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"find the directory of {option}", path) from error


def _bind(path: str) -> tuple[BoundSocket, BoundSocket]:
    stream = bind_socket(path, _STREAM, reserve_bytes=_LONGEST_PORT)
    try:
        return stream, bind_socket(path + SEQPACKET_SUFFIX, _SEQPACKET)
    except (ConfigError, HostError):
        stream.close()
        stream.unlink()
        raise


def _bind_new(path: str, option: str) -> tuple[BoundSocket, BoundSocket]:
    """Bind both sockets without a look at whoever listens there, which takes a connection."""
    for name in (path, path + SEQPACKET_SUFFIX):
        check_new(name, option)
    stream = bind_new_socket(path, SocketUse(option, socket.SOCK_STREAM), _LONGEST_PORT)
    try:
        seqpacket = SocketUse(option, socket.SOCK_SEQPACKET)
        return stream, bind_new_socket(path + SEQPACKET_SUFFIX, seqpacket)
    except (ConfigError, HostError):
        stream.close()
        raise
