# SPDX-License-Identifier: BSD-3-Clause
"""Give the file of a disk another size, as far as the vmm may ask for that."""

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
    """Hold the vmm to what it may ask for: it may have been taken over since it made ``device``.

    Raises:
        ProtocolError: the device has no file of its own to write whose size may change, such as
            the log that a console writes to, or it is no size of a disk.
    """
    if not (kind.resizable and device.max_file_bytes):
        raise ProtocolError(f"device {order.device_id} ({device.kind}) has no file to resize")
    if order.size_bytes < _SECTOR_BYTES or order.size_bytes % _SECTOR_BYTES:
        raise ProtocolError(f"{order.size_bytes} bytes are no size of a disk")


def resize_file(pid: int, fd: int, size_bytes: int) -> int:
    """Give a file another size and its writer, a child of ours, another bound; return the size.

    Raises:
        OSError: the host refuses it; nothing has changed.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    bound = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    if soft != resource.RLIM_INFINITY:  # else it has no jail
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bound, hard))
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        raise
    return size_bytes
