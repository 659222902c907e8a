# SPDX-License-Identifier: BSD-3-Clause
"""A copy of a root image in a file without a name; it is gone when its last descriptor closes."""

from __future__ import annotations

import errno
import fcntl
import os

from sys_util.errors import ConfigError, HostError
from sys_util.typing import Final

_FICLONE: Final = 0x40049409  # ioctl_ficlone(2)
_CHUNK_BYTES: Final = 1 << 24


def throwaway_copy(path: str) -> int:
    """Copy ``path`` into a file without a name; return its descriptor, which the caller owns.

    The copy is in the folder of the image, so that the file system can share the blocks of both.
    If we cannot write there, it is in ``$TMPDIR`` or /var/tmp. Holes of the image stay holes.

    Raises:
        ConfigError: the image cannot be read.
        HostError: no copy can be made.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigError(path) from error
    try:
        target = _unnamed(os.path.dirname(path), os.environ.get("TMPDIR") or "/var/tmp")
        try:
            _copy(source, target)
        except BaseException:
            os.close(target)
            raise
    except OSError as error:
        raise HostError("copy", path) from error
    finally:
        os.close(source)
    return target


def _unnamed(*folders: str) -> int:
    refused: OSError | None = None
    for folder in folders:
        try:
            return os.open(folder or ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            refused = error
    raise refused or OSError(errno.ENOENT, "no folder")


def _copy(source: int, target: int) -> None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        size_bytes = os.fstat(source).st_size
        os.truncate(target, size_bytes)
        _copy_data(source, target, size_bytes)


def _copy_data(source: int, target: int, size_bytes: int) -> None:
    at = 0
    while at < size_bytes:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest of the file is a hole
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(source, min(end - at, _CHUNK_BYTES), at)
            if not data:
                return
            os.pwrite(target, data, at)
            at += len(data)
