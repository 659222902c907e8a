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
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import blob, boolean, integer, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sys_util.wire import Check

# The kinds of device that a running VM may get; their policies are loaded at its start.
LATER_KINDS: Final = ("block", "net", "rng", "vhost-net", "vsock")


@fact
class LaterCard:
    """A network card on a TAP; the fields are those of ``NetworkSpec``.

    If descriptors come with the request, one for each of the ``pairs``, they are the TAP.
    """

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(text(15), blob(6), integer(1, 32), integer(0, 65535), RATE_LIMITS, boolean),
        *(boolean, blob(4), blob(4)),
    )
    tap_name: str
    mac: bytes = b""
    pairs: int = 1
    mtu: int = 0
    limits: RateLimits = RateLimits()
    vhost: bool = False
    makes: bool = False
    host_ip: bytes = b""
    netmask: bytes = b""


class Wanted(NamedTuple):
    """What a client sent for its device, and how many vCPUs the guest has."""

    spec: bytes
    path: str
    fds: tuple[int, ...]
    cpus: int


def open_later(
    kind: str, spec: bytes, path: bytes, *, cpus: int, fds: Sequence[int] = ()
) -> DeviceOrder:
    """Open what a device of this ``kind`` needs, for a guest with ``cpus`` vCPUs.

    The caller owns the descriptors of the order, and still owns ``fds``, those of the client. The
    name in the order is to be replaced.

    Raises:
        ConfigError: there is no such kind, or the user asked for something impossible.
        HostError: the host refuses something.
        ProtocolError: it is no Spec of this kind.
    """
    opener = _OPENERS.get(kind)
    if opener is None:
        raise ConfigError(f"no device of kind {brief(kind)} can be plugged into a running VM")
    if fds and kind != "net":
        raise ConfigError(f"a {kind} takes no descriptors, and {len(fds)} came with it")
    return opener(Wanted(spec, os.fsdecode(path), tuple(fds), cpus))


def _open_disk(wanted: Wanted) -> DeviceOrder:
    from crosvm_py.kinds.block import open_disk
    from devices.virtio.block.spec import BlockSpec

    spec = replace(unpack_spec(BlockSpec, wanted.spec), path=wanted.path, root=False)
    return open_disk(0, (spec,), cpus=wanted.cpus)


def _open_card(wanted: Wanted) -> DeviceOrder:
    from crosvm_py.config import NetworkSpec
    from crosvm_py.kinds.net import open_card

    card = unpack_spec(LaterCard, wanted.spec)
    count = len(wanted.fds)
    is_new = card.makes or bool(card.host_ip)
    if (bool(card.tap_name) or is_new) == bool(count) or len(card.mac) not in (0, 6):
        raise ConfigError(
            "plug net: a card needs the name of a TAP or its descriptors, and 6 bytes of address"
        )
    if {len(card.host_ip), len(card.netmask)} not in ({0}, {4}):
        raise ConfigError("plug net: address and netmask have 4 bytes each")
    if count and count != card.pairs:
        raise ConfigError(f"plug net: {count} descriptors for {card.pairs} pairs of queues")
    return open_card(
        0,
        NetworkSpec(
            option="plug net",
            tap_name=card.tap_name,
            tap_fds=wanted.fds,
            mac=card.mac,
            pairs=card.pairs,
            mtu=card.mtu,
            limits=card.limits,
            vhost=card.vhost,
            makes=card.makes,
            host_ip=card.host_ip,
            netmask=card.netmask,
        ),
    )


def _open_vsock(wanted: Wanted) -> DeviceOrder:
    from crosvm_py.kinds.vsock import open_vsock
    from devices.virtio.vsock.common import RESERVED_CIDS, VsockSpec

    cid = unpack_spec(VsockSpec, wanted.spec).cid
    if cid in RESERVED_CIDS:
        raise ConfigError(f"plug vsock: cid {cid} is reserved")
    if not wanted.path:
        raise ConfigError("plug vsock: it needs a socket; that of the host's kernel cannot come")
    return open_vsock(VsockSpec(cid, wanted.path), later=True)


def _open_rng(wanted: Wanted) -> DeviceOrder:
    from crosvm_py.kinds.rng import open_rng
    from devices.virtio.rng.device import RngSpec

    return open_rng(unpack_spec(RngSpec, wanted.spec))


_OPENERS: Final[dict[str, Callable[[Wanted], DeviceOrder]]] = {
    "block": _open_disk,
    "net": _open_card,
    "rng": _open_rng,
    "vsock": _open_vsock,
}
