# SPDX-License-Identifier: BSD-3-Clause
"""Network cards, served by their process or by the host's kernel.

``crosvm_py/net`` has the host's side.
"""

from __future__ import annotations

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from devices.virtio.net.stats import NET_STATS
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.config import NetworkSpec
    from devices.virtio.device import VirtioDevice


# struct virtio_net_config: the field ``status`` comes after the address (virtio 1.3 §5.1.4).
_STATUS: Final = slice(6, 8)
_LINK_UP: Final = 1


def is_link_up(config: bytes) -> bool:
    """Return whether a card with this configuration shows the guest a link."""
    return bool(int.from_bytes(config[_STATUS], "little") & _LINK_UP)


def open_card(index: int, spec: NetworkSpec, *, rehearsal: bool = False) -> DeviceOrder:
    """Open the host's side of card ``index``: a TAP interface or passt.

    In a ``rehearsal`` no program is started, and no interface configured.

    Raises:
        ConfigError: the interface does not exist, or is no TAP.
        HostError: the host refuses to open it.
    """
    from crosvm_py.net.setup import open_network, rehearse_network

    network = rehearse_network(spec) if rehearsal else open_network(spec)
    kind = VHOST_NET if network.vhosts else NET
    return DeviceOrder(
        f"{NET.name}:{index}",
        kind.name,
        pack_spec(network.spec),
        network.fds,
        0,
        reopened=network.vhosts,
        source=_source(spec),
        limits=network.spec.limits,
    )


def _source(spec: NetworkSpec) -> str:
    """Say what the card is connected to on the host."""
    if spec.user:
        return "passt"
    if spec.tap_fds:
        return "TAP of " + ", ".join(f"descriptor {fd}" for fd in spec.tap_fds)
    return f"TAP {spec.tap_name}" if spec.tap_name else "a new TAP"


def _build(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.net.device import Net
    from devices.virtio.net.state import NetSpec

    return Net(unpack_spec(NetSpec, spec), fds)


def _build_in_kernel(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.net.kernel import KernelNet
    from devices.virtio.net.state import NetSpec
    from sys_util.vhost import Vhost

    facts = unpack_spec(NetSpec, spec)
    return KernelNet(facts, fds[: facts.pairs], [Vhost(fd) for fd in fds[facts.pairs :]])


NET: Final = DeviceKind(
    "net",
    "net_device",
    "devices.virtio.net.device",
    _build,
    counters=NET_STATS,
    is_card=True,
    removable=True,
)
VHOST_NET: Final = DeviceKind(
    "vhost-net",
    "vhost_net_device",
    "devices.virtio.net.kernel",
    _build_in_kernel,
    counters=NET_STATS,
    is_card=True,
    removable=True,
    in_kernel=True,
    max_processes=17,  # itself and, since Linux 6.4, the kernel's worker for each pair
)
