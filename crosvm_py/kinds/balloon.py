# SPDX-License-Identifier: BSD-3-Clause
"""The balloon: at most one per VM. It needs nothing of the host but guest memory."""

from __future__ import annotations

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.balloon.device import BalloonSpec
    from devices.virtio.device import VirtioDevice


def open_balloon(spec: BalloonSpec) -> DeviceOrder:
    """Return the order for the balloon; there is nothing to open."""
    return DeviceOrder(BALLOON.name, BALLOON.name, pack_spec(spec), (), 0)


def _build(spec: bytes, _fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.balloon.device import Balloon, BalloonSpec

    return Balloon(unpack_spec(BalloonSpec, spec))


BALLOON: Final = DeviceKind(
    "balloon",
    "balloon_device",
    "devices.virtio.balloon.device",
    _build,
    counters=("pages_inflated", "pages_deflated", "bytes_reported"),
    plain_fields=((4, 4), (12, 4)),  # actual, poison_val (virtio 1.3 §5.5.4)
)
