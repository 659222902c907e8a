# SPDX-License-Identifier: BSD-3-Clause
"""An order for a device of every kind, with the real descriptors of that where the host has any.

A host without TUN or vhost, or a user who may not use them, gets a stand-in: a socket in the place
of a TAP, an eventfd in the place of a kernel device.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from crosvm_py.kinds.mem import open_mem
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from crosvm_py.kinds.vsock import open_vsock
from crosvm_py.kinds.vsock_host import KERNEL_DEVICE
from devices.virtio.balloon.device import BalloonSpec
from devices.virtio.block.spec import BlockSpec
from devices.virtio.console.device import ConsoleSpec, PortSpec
from devices.virtio.net.header import HEADER_BYTES
from devices.virtio.net.state import NetSpec
from devices.virtio.rng.device import RngSpec
from devices.virtio.vsock.common import VsockSpec
from disk.image import open_image
from sys_util import tap
from sys_util.errors import VmmError
from tests.breakout import brokering
from tests.breakout.attempt import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE_BYTES: Final = 1 << 20
CID: Final = 3
_MAC: Final = bytes.fromhex("52540000beef")
_VHOST_NET: Final = "/dev/vhost-net"
_SOCKETS_OWNER: Final = 61_000
# What the vmm passes for a device that may write files without a bound.
_UNBOUNDED: Final = 1 << 62


class Orders:
    """Makes orders; ``stand_ins`` are the kinds whose vhost is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._kept: list[int] = []
        self.stand_ins = frozenset(
            kind
            for kind, path in (("vhost-net", _VHOST_NET), ("vhost-vsock", KERNEL_DEVICE))
            if not os.access(path, os.R_OK | os.W_OK) or (kind == "vhost-net" and not self._has_tap)
        )

    def close(self) -> None:
        """Close the other sides of what the devices have."""
        for fd in self._kept:
            os.close(fd)
        self._kept.clear()

    @property
    def _has_tap(self) -> bool:
        tap_or_not = self._tap()
        if tap_or_not is None:
            return False
        os.close(tap_or_not)
        return True

    @staticmethod
    def _tap() -> int | None:
        try:
            fd, _ = tap.open_queue("breakout%d", multi_queue=False)
            tap.set_header_size(fd, HEADER_BYTES)
        except OSError:
            return None
        return fd

    def _new_path(self, name: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count}-{name}"

    def order(self, kind: str) -> DeviceOrder:
        """Return an order whose descriptors become the caller's."""
        return _MAKERS[kind](self)

    def _block(self) -> DeviceOrder:
        path = self._new_path("disk.img")
        with path.open("wb") as image:
            image.truncate(FILE_BYTES)
        spec = BlockSpec(str(path))
        packed = pack_spec(spec, path="", num_queues=2)
        return DeviceOrder("block:0", "block", packed, (open_image(spec),), FILE_BYTES)

    def _rng(self) -> DeviceOrder:
        return DeviceOrder("rng", "rng", pack_spec(RngSpec()), (), 0)

    def _net(self) -> DeviceOrder:
        fd = self._tap()
        spec = NetSpec(_MAC, 1500, tap=fd is not None)
        fds = (fd,) if fd is not None else (self._stream(),)
        return DeviceOrder("net:0", "net", pack_spec(spec), fds, 0)

    def _vhost_net(self) -> DeviceOrder:
        spec = NetSpec(_MAC, 1500)
        if "vhost-net" in self.stand_ins:
            fds: Sequence[int] = (self._stream(), os.eventfd(0))
            reopened = 0
        else:
            tap_fd = self._tap()
            if tap_fd is None:
                raise VmmError("the TAP of a moment ago cannot be had any more")
            fds = (tap_fd, os.open(_VHOST_NET, os.O_RDWR | os.O_CLOEXEC))
            reopened = 1
        packed = pack_spec(spec)
        return DeviceOrder("net:1", "vhost-net", packed, tuple(fds), 0, reopened=reopened)

    def _vsock(self) -> DeviceOrder:
        path = self._new_path("sockets") / "v"
        path.parent.mkdir()
        self._kept += brokering.lay_out(path)
        if os.geteuid() == 0:  # as SECURITY.md asks of root
            for name in (".", *os.listdir(path.parent)):
                owner = (_SOCKETS_OWNER, _SOCKETS_OWNER)
                os.chown(path.parent / name, *owner, follow_symlinks=False)
        return open_vsock(VsockSpec(CID, str(path)))

    def _vhost_vsock(self) -> DeviceOrder:
        self._count += 1  # each has an address of its own in the host's kernel
        spec = VsockSpec(CID + self._count)
        if "vhost-vsock" not in self.stand_ins:
            return open_vsock(spec)._replace(name="vsock:1")
        packed = pack_spec(spec)
        return DeviceOrder("vsock:1", "vhost-vsock", packed, (os.eventfd(0),), 0)

    def _balloon(self) -> DeviceOrder:
        spec = BalloonSpec(page_reporting=True)
        return DeviceOrder("balloon", "balloon", pack_spec(spec), (), 0)

    def _mem(self) -> DeviceOrder:
        return open_mem(0)

    def _console(self) -> DeviceOrder:
        master, slave = os.openpty()
        os.set_blocking(master, False)
        self._kept.append(slave)
        port = PortSpec("", True, "stream", "stream", 80, 24, True)
        packed = pack_spec(ConsoleSpec((port,)))
        return DeviceOrder("console", "console", packed, (master, os.dup(master)), _UNBOUNDED)

    def _stream(self) -> int:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._kept.append(ours.detach())
        return theirs.detach()


_MAKERS: Final = {
    "block": Orders._block,
    "rng": Orders._rng,
    "net": Orders._net,
    "vhost-net": Orders._vhost_net,
    "vsock": Orders._vsock,
    "vhost-vsock": Orders._vhost_vsock,
    "balloon": Orders._balloon,
    "console": Orders._console,
    "virtio-mem": Orders._mem,
}
if tuple(_MAKERS) != KINDS:
    raise ValueError("a kind is missing")
