# SPDX-License-Identifier: BSD-3-Clause
"""Which devices can be plugged into a running VM, and how the opener opens them.

A client sends the packed Spec of the device, without the path that the device process never gets.
"""

from __future__ import annotations

import os

from crosvm_py.kinds.order import DeviceOrder, unpack_spec
from devices.virtio.rate_limiter import RATE_LIMITS, RateLimits
from sys_util.errors import ConfigError
from sys_util.facts import fact, replace
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import blob, boolean, integer, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sys_util.wire import Check

# The kinds of device that a running VM may get; their policies are loaded at its start.
LATER_KINDS: Final = ("block", "net", "rng", "vhost-net")


@fact
class LaterCard:
    """A network card on a TAP that exists; the fields are those of ``NetworkSpec``."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(text(15), blob(6), integer(1, 32), integer(0, 65535), RATE_LIMITS, boolean),
    )
    tap_name: str
    mac: bytes = b""
    pairs: int = 1
    mtu: int = 0
    limits: RateLimits = RateLimits()
    vhost: bool = False


def open_later(kind: str, spec: bytes, path: bytes, *, cpus: int) -> DeviceOrder:
    """Open what a device of this ``kind`` needs, for a guest with ``cpus`` vCPUs.

    The caller owns the descriptors. The name in the order is to be replaced.

    Raises:
        ConfigError: there is no such kind, or the user asked for something impossible.
        HostError: the host refuses something.
        ProtocolError: it is no Spec of this kind.
    """
    opener = _OPENERS.get(kind)
    if opener is None:
        raise ConfigError(f"no device of kind {brief(kind)} can be plugged into a running VM")
    return opener(spec, os.fsdecode(path), cpus)


def _open_disk(packed: bytes, path: str, cpus: int) -> DeviceOrder:
    from crosvm_py.kinds.block import open_disk
    from devices.virtio.block.spec import BlockSpec

    spec = replace(unpack_spec(BlockSpec, packed), path=path, root=False)
    return open_disk(0, (spec,), cpus=cpus)


def _open_card(packed: bytes, _path: str, _cpus: int) -> DeviceOrder:
    from crosvm_py.config import NetworkSpec
    from crosvm_py.kinds.net import open_card

    card = unpack_spec(LaterCard, packed)
    if not card.tap_name or len(card.mac) not in (0, 6):
        raise ConfigError("plug net: a card needs the name of a TAP and an address of 6 bytes")
    return open_card(
        0,
        NetworkSpec(
            option="plug net",
            tap_name=card.tap_name,
            mac=card.mac,
            pairs=card.pairs,
            mtu=card.mtu,
            limits=card.limits,
            vhost=card.vhost,
        ),
    )


def _open_rng(packed: bytes, _path: str, _cpus: int) -> DeviceOrder:
    from crosvm_py.kinds.rng import open_rng
    from devices.virtio.rng.device import RngSpec

    return open_rng(unpack_spec(RngSpec, packed))


_OPENERS: Final[dict[str, Callable[[bytes, str, int], DeviceOrder]]] = {
    "block": _open_disk,
    "net": _open_card,
    "rng": _open_rng,
}
