# SPDX-License-Identifier: BSD-3-Clause
"""Resize the file of a disk, within the limits of what the vmm may ask for."""

from __future__ import annotations

import os
import resource
import stat

from sys_util.errors import ProtocolError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.kinds.kind import DeviceKind
    from crosvm_py.warden.protocol import Resize, Spawn

_SECTOR_BYTES: Final = 512


def check_resize(order: Resize, kind: DeviceKind, device: Spawn) -> None:
    """Check what the vmm asks for: a guest may have taken it over since it ordered ``device``.

    Raises:
        ProtocolError: the device writes no file that may be resized (a console's log may not be),
            or the size is no size of a disk.
    """
    if not (kind.resizable and device.max_file_bytes):
        raise ProtocolError(f"device {order.device_id} ({device.kind}) has no file to resize")
    if order.size_bytes < _SECTOR_BYTES or order.size_bytes % _SECTOR_BYTES:
        raise ProtocolError(f"{order.size_bytes} bytes are no size of a disk")


def resize_file(pid: int, fd: int, size_bytes: int) -> int:
    """Resize a file and the RLIMIT_FSIZE of its writer, our child ``pid``; return the new size.

    A block device is not resized; its present size is returned.

    Raises:
        OSError: the host refuses it; nothing has changed.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    bound = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    if soft != resource.RLIM_INFINITY:  # without a jail it has no limit
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bound, hard))
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        raise
    return size_bytes
