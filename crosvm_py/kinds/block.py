# SPDX-License-Identifier: BSD-3-Clause
"""Disks: an image each, opened and locked by the vmm."""

from __future__ import annotations

import os

from crosvm_py.kinds.kind import MIB, DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.block.image import BlockSpec
    from devices.virtio.device import VirtioDevice

# More queues than this share the one process that serves them all, and gain nothing.
_MAX_QUEUES: Final = 4


def open_disk(index: int, spec: BlockSpec, *, cpus: int) -> DeviceOrder:
    """Open the image of the disk with this index, for a guest with so many vCPUs.

    Raises:
        ConfigError: the image or an option cannot be what the user meant.
        HostError: the host does not let us.
    """
    from devices.virtio.block.image import open_image

    fd = open_image(spec)
    return DeviceOrder(
        f"{BLOCK.name}:{index}",
        BLOCK.name,
        pack_spec(spec, path="", num_queues=min(cpus, _MAX_QUEUES)),
        (fd,),
        0 if spec.read_only else os.lseek(fd, 0, os.SEEK_END),
        source=spec.path,
        limits=spec.limits,
    )


def _build(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.block.device import Block
    from devices.virtio.block.image import BlockSpec

    return Block(unpack_spec(BlockSpec, spec), fds[0])


BLOCK: Final = DeviceKind(
    "block",
    "block_device",
    "devices.virtio.block.device",
    _build,
    resizable=True,
    max_memory_bytes=1280 * MIB,  # with what was written and is not on the disk yet
)
