# SPDX-License-Identifier: BSD-3-Clause
"""Disks: each has an image, which the vmm opens and locks."""

from __future__ import annotations

import os
from contextlib import suppress

from crosvm_py.kinds.kind import MIB, DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from devices.virtio.block.latency import DISK_COUNTERS
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.block.spec import BlockSpec
    from devices.virtio.device import VirtioDevice

# One process serves all queues of a disk, so more queues would gain nothing.
_MAX_QUEUES: Final = 4

# The threads of a disk with ``direct``: so many transfers are under way at the same time.
_THREADS: Final = 16


def open_disk(index: int, disks: Sequence[BlockSpec], *, cpus: int) -> DeviceOrder:
    """Open the image of disk ``index`` of ``disks``, for a guest with ``cpus`` vCPUs.

    The disks before it have been opened.

    Raises:
        ConfigError: the image or an option, such as the id, cannot be used.
        HostError: the host refuses to open it.
    """
    from disk.image import ImageInUseError, open_image

    spec = disks[index]
    spec.id_bytes()
    try:
        fd = open_image(spec)
    except ImageInUseError:
        _refuse_twin(spec, disks[:index])
        raise
    return DeviceOrder(
        f"{BLOCK.name}:{index}",
        BLOCK.name,
        pack_spec(spec, path="", num_queues=min(cpus, _MAX_QUEUES)),
        (fd,),
        0 if spec.read_only else os.lseek(fd, 0, os.SEEK_END),
        source=spec.path,
        limits=spec.limits,
    )


def _refuse_twin(spec: BlockSpec, earlier: Sequence[BlockSpec]) -> None:
    """Raise ConfigError if the user gave one of the ``earlier`` disks the same image."""
    for other in earlier:
        with suppress(OSError):
            if os.path.samefile(spec.path, other.path):
                raise ConfigError(
                    f"{spec.option} {spec.path}: {other.option} {other.path} is the same image; "
                    "two disks can share one only if both are read-only"
                )


def _build(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.block.device import Block
    from devices.virtio.block.spec import BlockSpec

    return Block(unpack_spec(BlockSpec, spec), fds[0], threads=_THREADS)


BLOCK: Final = DeviceKind(
    "block",
    "block_device",
    "devices.virtio.block.device",
    _build,
    resizable=True,
    removable=True,
    threads=_THREADS,
    counters=DISK_COUNTERS,
    max_memory_bytes=1280 * MIB,  # includes dirty pages that the kernel has not written back yet
)
