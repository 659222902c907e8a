# SPDX-License-Identifier: BSD-3-Clause
"""vsock: at most one per VM, connected to UNIX sockets of the host or served by its kernel."""

from __future__ import annotations

import os

from crosvm_py.kinds.kind import MIB, BrokerKind, DeviceKind
from crosvm_py.kinds.order import Connects, DeviceOrder, pack_spec, unpack_spec
from devices.virtio.vsock.common import COUNTERS
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.device import VirtioDevice
    from devices.virtio.vsock.common import VsockSpec


def open_vsock(spec: VsockSpec, *, later: bool = False) -> DeviceOrder:
    """Open what the device needs of the host; ``later`` if it is plugged into a running VM.

    Raises:
        ConfigError: the socket or the address is in use, or cannot be used.
        HostError: the host refuses something.
    """
    from crosvm_py.kinds import vsock_host

    if spec.socket is None:
        fd = vsock_host.open_kernel_device(spec.cid)
        return DeviceOrder(VSOCK.name, VHOST_VSOCK.name, pack_spec(spec), (fd,), 0, reopened=1)
    option = "plug vsock" if later else vsock_host.OPTION
    sockets, directory = vsock_host.open_sockets(spec.socket, option, replace_stale=not later)
    fds = (*(bound.sock.detach() for bound in sockets), directory.fd)
    return DeviceOrder(
        VSOCK.name,
        VSOCK.name,
        pack_spec(spec, socket=None),
        fds,
        0,
        Connects(os.fsencode(directory.name), directory.uid, directory.gid),
        sockets=sockets,
    )


def _build(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.vsock.common import VsockSpec
    from devices.virtio.vsock.device import Vsock

    return Vsock(unpack_spec(VsockSpec, spec), fds)


def _build_in_kernel(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.vsock.common import VsockSpec
    from devices.virtio.vsock.kernel import KernelVsock
    from sys_util.vhost import Vhost

    return KernelVsock(unpack_spec(VsockSpec, spec), Vhost(fds[0]))


VSOCK: Final = DeviceKind(
    "vsock",
    "vsock_device",
    "devices.virtio.vsock.device",
    _build,
    counters=COUNTERS,
    broker=BrokerKind("vsock_broker", "crosvm_py.device_process.vsock_broker"),
    removable=True,
    max_open_files=1280,  # a socket for each of 1,023 connections
    max_memory_bytes=576 * MIB,  # includes the buffers of those sockets
)
VHOST_VSOCK: Final = DeviceKind(
    "vhost-vsock",
    "vhost_vsock_device",
    "devices.virtio.vsock.kernel",
    _build_in_kernel,
    in_kernel=True,
    removable=True,
    max_processes=2,  # itself and, since Linux 6.4, the kernel's worker for it
)
