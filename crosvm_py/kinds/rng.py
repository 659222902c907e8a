# SPDX-License-Identifier: BSD-3-Clause
"""The random number generator: at most one per VM. It needs nothing of the host."""

from __future__ import annotations

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.device import VirtioDevice
    from devices.virtio.rng.device import RngSpec


def open_rng(spec: RngSpec) -> DeviceOrder:
    """Return the order for the device; there is nothing to open."""
    return DeviceOrder(RNG.name, RNG.name, pack_spec(spec), (), 0, limits=spec.limits)


def _build(spec: bytes, _fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.rng.device import Rng, RngSpec

    return Rng(unpack_spec(RngSpec, spec))


RNG: Final = DeviceKind("rng", "rng_device", "devices.virtio.rng.device", _build)
