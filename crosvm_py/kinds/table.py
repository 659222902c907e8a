# SPDX-License-Identifier: BSD-3-Clause
"""Every kind of device: its module, its policy and how its process builds it.

The module of a kind is imported when the kind is first asked for, in the warden.
"""

from __future__ import annotations

from crosvm_py.kinds.order import NO_OUTPUT
from devices.virtio.net.stats import NET_STATS
from devices.virtio.vsock.common import COUNTERS as VSOCK_COUNTERS
from sys_util.stranger import unpack_fields
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from devices.virtio.device import VirtioDevice
    from devices.virtio.rate_limiter import RateLimits

    Fields = dict[str, object]


_MIB: Final = 1 << 20


class BrokerKind(NamedTuple):
    """The process beside a device that connects it to sockets of the host."""

    policy_name: str
    module: str  # has run_broker()


class DeviceKind(NamedTuple):
    """What is known of a device before it exists.

    ``counters`` names what its kind counts besides requests and bytes, in the order of their cells.
    ``resizable``: the first of its own descriptors is a file that can get another size.
    ``broker``: a process beside it that connects it to sockets of the host, if it needs one; the
    device's last descriptor is the channel to it. ``in_kernel``: the host's kernel serves its
    queues. The kernel's threads on its behalf count as processes of its user. ``output_offset`` is
    where each write to the configuration is output.
    """

    policy_name: str
    module: str
    build: Callable[[Fields, Sequence[int]], VirtioDevice]
    counters: tuple[str, ...] = ()
    resizable: bool = False
    broker: BrokerKind | None = None
    in_kernel: bool = False
    output_offset: int = NO_OUTPUT
    max_open_files: int = 192  # two eventfds for each of 64 queues, and the process's own
    max_processes: int = 0
    max_memory_bytes: int = 320 * _MIB  # the process's own and the kernel's for it, in a cgroup

    def preload(self) -> None:
        """Import what the device's process needs, so that it never has to."""
        from importlib import import_module

        import_module(self.module)
        if self.broker is not None:
            import_module(self.broker.module)


def _build_balloon(fields: Fields, _fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.balloon.device import Balloon, BalloonSpec

    return Balloon(BalloonSpec(**fields))  # type: ignore[arg-type]  # the vmm packed these fields


def _build_block(fields: Fields, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.block.device import Block
    from devices.virtio.block.image import BlockSpec

    queues = fields.pop("num_queues")
    fields["limits"] = _limits(fields)
    spec = BlockSpec(**fields)  # type: ignore[arg-type]  # the vmm packed these very fields
    return Block(spec, fds[0], num_queues=int(str(queues)))


def _build_console(fields: Fields, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.console.device import Console, ConsoleSpec

    return Console(ConsoleSpec(**fields), fds)  # type: ignore[arg-type]  # the vmm packed these


def _limits(fields: Fields) -> RateLimits:
    from devices.virtio.rate_limiter import RateLimits

    return RateLimits._make(fields["limits"])  # type: ignore[arg-type]  # six numbers, packed


def _build_net(fields: Fields, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.net.device import Net
    from devices.virtio.net.state import NetSpec

    fields["limits"] = _limits(fields)
    return Net(NetSpec(**fields), fds)  # type: ignore[arg-type]  # as above


def _build_kernel_net(fields: Fields, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.net.kernel import KernelNet
    from devices.virtio.net.state import NetSpec
    from sys_util.vhost import Vhost

    fields["limits"] = _limits(fields)
    spec = NetSpec(**fields)  # type: ignore[arg-type]  # as above
    vhosts = [Vhost(fd) for fd in fds[spec.pairs :]]
    return KernelNet(spec, fds[: spec.pairs], vhosts)


def _build_rng(fields: Fields, _fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.rng.device import Rng, RngSpec

    fields["limits"] = _limits(fields)
    return Rng(RngSpec(**fields))  # type: ignore[arg-type]  # as above


def _build_kernel_vsock(fields: Fields, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.vsock.common import VsockSpec
    from devices.virtio.vsock.kernel import KernelVsock
    from sys_util.vhost import Vhost

    return KernelVsock(VsockSpec(**fields), Vhost(fds[0]))  # type: ignore[arg-type]  # as above


def _build_vsock(fields: Fields, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.vsock.common import VsockSpec
    from devices.virtio.vsock.device import Vsock

    return Vsock(VsockSpec(**fields), fds)  # type: ignore[arg-type]  # as above


DEVICE_KINDS: Final[dict[str, DeviceKind]] = {
    "balloon": DeviceKind(
        "balloon_device",
        "devices.virtio.balloon.device",
        _build_balloon,
        ("pages_inflated", "pages_deflated", "bytes_reported"),
    ),
    "block": DeviceKind(
        "block_device",
        "devices.virtio.block.device",
        _build_block,
        resizable=True,
        max_memory_bytes=1280 * _MIB,  # with what was written and is not on the disk yet
    ),
    "console": DeviceKind(
        "console_device",
        "devices.virtio.console.device",
        _build_console,
        ("dropped_bytes",),
        output_offset=8,  # emerg_wr (virtio 1.3 §5.3.4)
    ),
    "net": DeviceKind("net_device", "devices.virtio.net.device", _build_net, NET_STATS),
    "rng": DeviceKind("rng_device", "devices.virtio.rng.device", _build_rng),
    "vhost-net": DeviceKind(
        "vhost_net_device",
        "devices.virtio.net.kernel",
        _build_kernel_net,
        NET_STATS,
        in_kernel=True,
        max_processes=17,  # itself and, since Linux 6.4, the kernel's worker for each pair
    ),
    "vhost-vsock": DeviceKind(
        "vhost_vsock_device",
        "devices.virtio.vsock.kernel",
        _build_kernel_vsock,
        in_kernel=True,
        max_processes=2,  # itself and, since Linux 6.4, the kernel's worker for it
    ),
    "vsock": DeviceKind(
        "vsock_device",
        "devices.virtio.vsock.device",
        _build_vsock,
        VSOCK_COUNTERS,
        broker=BrokerKind("vsock_broker", "crosvm_py.device_process.vsock_broker"),
        max_open_files=1280,  # a socket for each of 1,023 connections
        max_memory_bytes=576 * _MIB,  # with what waits in those sockets
    ),
}


def policies_of(kinds: Iterable[str]) -> list[str]:
    """Return the names of the policies for devices of these kinds, and for their brokers."""
    found = {DEVICE_KINDS[kind].policy_name for kind in kinds}
    brokers = (DEVICE_KINDS[kind].broker for kind in kinds)
    return sorted(found.union(broker.policy_name for broker in brokers if broker is not None))


def build_device(kind: str, spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    """Build the device that ``spec`` describes; ``fds`` become its own."""
    return DEVICE_KINDS[kind].build(unpack_fields(spec), fds)
