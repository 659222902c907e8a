# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of vsock: its sockets bound, or the kernel's device opened, before the fork."""

from __future__ import annotations

import errno
import os
import socket

from crosvm_py.control.socket_path import SocketUse, bind_socket, control_socket_path
from crosvm_py.device_process.kinds import DeviceOrder, pack_spec
from crosvm_py.warden.protocol import NO_DIRECTORY, Directory
from sys_util.errors import ConfigError, HostError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple
from sys_util.vhost import Vhost

if TYPE_CHECKING:
    from crosvm_py.control.socket_path import BoundSocket
    from devices.virtio.vsock_common import VsockSpec

OPTION: Final = "--vsock"

KERNEL_DEVICE: Final = "/dev/vhost-vsock"
_INSTEAD: Final = "load the module (modprobe vhost_vsock), or give socket=PATH, which needs none"
_PERMISSION: Final = "join the group that owns it, or give socket=PATH, which needs no device"

# Beside the socket lie its sister for messages and, made by the host's programs, "_<port>".
SEQPACKET_SUFFIX: Final = ".seqpacket"
_LONGEST_PORT: Final = len("_4294967295")

_STREAM: Final = SocketUse(OPTION, socket.SOCK_STREAM)
_SEQPACKET: Final = SocketUse(OPTION, socket.SOCK_SEQPACKET)

_WORLD_WRITABLE: Final = 0o002

log = get_logger("crosvm.run")


class PreparedVsock(NamedTuple):
    """The process that is to be made, and the socket files that go away with the VM."""

    order: DeviceOrder
    sockets: tuple[BoundSocket, ...]


def prepare_vsock(spec: VsockSpec, *, sandbox: bool, control: str | None = None) -> PreparedVsock:
    """Open what the device needs of the host.

    ``control`` is where the control socket was asked for, out of reach for the device.

    Raises:
        ConfigError: the socket or the address is taken, or cannot be.
        HostError: the host does not let us.
    """
    if spec.socket is None:
        fd = _open_kernel_device(spec.cid)
        order = DeviceOrder("vsock", "vhost-vsock", pack_spec(spec), (fd,), 0, reopened=1)
        return PreparedVsock(order, ())
    path = spec.socket
    if os.path.isdir(path):
        raise ConfigError(f"{OPTION}: {path}: is a directory")
    if not sandbox:
        return _bind(spec, path, path, NO_DIRECTORY)
    directory = _directory(os.path.dirname(os.path.abspath(path)))
    if control is not None:
        folder, name = os.path.split(os.path.abspath(control_socket_path(control)))
        if os.path.realpath(folder) == directory.path:
            directory = directory._replace(hidden=name)
    return _bind(spec, path, f"/{os.path.basename(path)}", directory)


def _open_kernel_device(cid: int) -> int:
    """Return the kernel's device, on which each process of ours opens one of its own.

    The address is the device process's to claim, so that the next one can when it has ended; here
    it is only made sure that it is free.

    Raises:
        ConfigError: another VM has the address, or the kernel has no vsock.
        HostError: the host does not let us.
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


def _bind(spec: VsockSpec, path: str, connect_path: str, directory: Directory) -> PreparedVsock:
    stream = bind_socket(path, _STREAM, reserve_bytes=_LONGEST_PORT)
    try:
        messages = bind_socket(path + SEQPACKET_SUFFIX, _SEQPACKET)
    except (ConfigError, HostError):
        stream.close()
        stream.unlink()
        raise
    sockets = (stream, messages)
    order = DeviceOrder(
        "vsock",
        "vsock",
        pack_spec(spec, connect_path=connect_path),
        tuple(bound.sock.detach() for bound in sockets),
        0,
        directory,
    )
    return PreparedVsock(order, sockets)


def _directory(path: str) -> Directory:
    """Return what the device's jail is to show.

    Raises:
        ConfigError: it would show other file systems too.
        HostError: there is no such directory.
    """
    path = os.path.realpath(path)
    try:
        found = os.stat(path)
    except OSError as error:
        raise HostError("find the directory of --vsock", path) from error
    below = _mounted_below(path)
    if below is not None:
        raise ConfigError(
            f"{OPTION}: {path}: {below} is mounted in it; give the socket a directory of its own, "
            "which is all that the device will see"
        )
    if found.st_mode & _WORLD_WRITABLE:
        log.warning(
            "--vsock: every user can put sockets into %s, where the guest reaches those that are "
            "called as its own; a directory of its own is safer",
            path,
        )
    if os.geteuid() != 0:
        return Directory(path, os.geteuid(), os.getegid())
    return Directory(path, found.st_uid, found.st_gid)


def _mounted_below(path: str) -> str | None:
    """Return a mount point inside ``path``, if there is one (proc_pid_mountinfo(5))."""
    prefix = path.rstrip("/") + "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            point = line.split()[4].replace("\\040", " ")
            if point.startswith(prefix):
                return point
    return None
