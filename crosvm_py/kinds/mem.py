# SPDX-License-Identifier: BSD-3-Clause
"""virtio-mem: at most one per VM. It needs nothing of the host but guest memory."""

from __future__ import annotations

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.device import VirtioDevice


def open_mem(requested_bytes: int) -> DeviceOrder:
    """Return the order for the device; there is nothing to open."""
    from devices.virtio.mem.device import MemSpec

    return DeviceOrder(MEM.name, MEM.name, pack_spec(MemSpec(requested_bytes)), (), 0)


def _build(spec: bytes, _fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.mem.device import Mem, MemSpec

    return Mem(unpack_spec(MemSpec, spec))


MEM: Final = DeviceKind("virtio-mem", "mem_device", "devices.virtio.mem.device", _build)
