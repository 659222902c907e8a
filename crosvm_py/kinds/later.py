# SPDX-License-Identifier: BSD-3-Clause
"""Which devices can be plugged into a running VM, and how the opener opens them.

A client sends the packed Spec of the device, without the path that the device process never gets.
"""

from __future__ import annotations

import os

from crosvm_py.kinds.order import DeviceOrder, unpack_spec
from sys_util.errors import ConfigError
from sys_util.facts import replace
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# The kinds of device that a running VM may get; their policies are loaded at its start.
LATER_KINDS: Final = ("block",)


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
    from devices.virtio.block.image import BlockSpec

    spec = replace(unpack_spec(BlockSpec, packed), path=path, root=False)
    return open_disk(0, (spec,), cpus=cpus)


_OPENERS: Final[dict[str, Callable[[bytes, str, int], DeviceOrder]]] = {"block": _open_disk}
