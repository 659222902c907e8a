# SPDX-License-Identifier: BSD-3-Clause
"""Every kind of device, and which devices a run has.

Only the warden and its children import the module that implements a kind of device.
"""

from __future__ import annotations

from crosvm_py.kinds.balloon import BALLOON, open_balloon
from crosvm_py.kinds.block import BLOCK, open_disk
from crosvm_py.kinds.console import CONSOLE, open_console
from crosvm_py.kinds.mem import MEM, open_mem
from crosvm_py.kinds.net import NET, VHOST_NET, open_card
from crosvm_py.kinds.rng import RNG, open_rng
from crosvm_py.kinds.vsock import VHOST_VSOCK, VSOCK, open_vsock
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crosvm_py.config import RunConfig
    from crosvm_py.console.virtio_console import VirtioConsole
    from crosvm_py.kinds.kind import DeviceKind
    from crosvm_py.kinds.order import DeviceOrder
    from devices.virtio.device import VirtioDevice

DEVICE_KINDS: Final[dict[str, DeviceKind]] = {
    kind.name: kind
    for kind in (BALLOON, BLOCK, CONSOLE, MEM, NET, RNG, VHOST_NET, VHOST_VSOCK, VSOCK)
}


def open_devices(
    config: RunConfig, console: VirtioConsole | None, *, rehearsal: bool
) -> Iterator[DeviceOrder]:
    """Open every device of a run, in the order of their PCI slots.

    ``console`` has the host's ends of the virtio ports. For a ``rehearsal`` see ``prepare``.

    Raises:
        ConfigError: the user asked for something impossible.
        HostError: the host refuses something.
    """
    for index in range(len(config.disks)):
        yield open_disk(index, config.disks, cpus=config.cpus)
    for index, card in enumerate(config.networks):
        yield open_card(index, card, rehearsal=rehearsal)
    if config.rng is not None:
        yield open_rng(config.rng)
    if config.balloon is not None:
        yield open_balloon(config.balloon)
    if console is not None:
        yield open_console(console)
    if config.vsock is not None:
        yield open_vsock(config.vsock)
    if config.has_virtio_mem:
        yield open_mem(config.hotplugged_bytes)


def policies_of(kinds: Iterable[str]) -> list[str]:
    """Return the names of the policies for devices of these kinds, and for their brokers."""
    found = {DEVICE_KINDS[kind].policy_name for kind in kinds}
    brokers = (DEVICE_KINDS[kind].broker for kind in kinds)
    return sorted(found.union(broker.policy_name for broker in brokers if broker is not None))


def build_device(kind: str, spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    """Build the device that ``spec`` describes; ``fds`` become its own."""
    return DEVICE_KINDS[kind].build(spec, fds)
