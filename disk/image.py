# SPDX-License-Identifier: BSD-3-Clause
"""Open, check and lock the image of a disk.

A device process gets only the descriptor: it can neither open nor lock files. The lock belongs to
the open file, so it lasts as long as any process of this VM holds the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from contextlib import suppress

from disk.format import foreign_format
from sys_util.errors import ConfigError, HostError
from sys_util.linux import ofd_lock
from sys_util.log import get_logger
from sys_util.stranger import brief
from sys_util.typing import Final, Protocol

log = get_logger("devices.virtio.block")

SECTOR_BYTES: Final = 512
MAX_BLOCK_BYTES: Final = 4096  # Linux guests take no logical block above their page size

_BLKROGET: Final = 0x125E  # linux/fs.h: into an int, whether the device is read-only
_INT: Final = struct.Struct("i")


class ImageOptions(Protocol):
    """What the user asked for. ``option`` is the name of the command line's option in messages.

    Without ``follow`` a path that ends in a symbolic link is refused; with ``direct`` the page
    cache is not used. The guest sees blocks of ``block_size`` bytes.
    """

    @property
    def option(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def block_size(self) -> int: ...
    @property
    def direct(self) -> bool: ...
    @property
    def lock(self) -> bool: ...
    @property
    def follow(self) -> bool: ...


class ImageInUseError(ConfigError):
    """Somebody else, or another disk of this VM, has the image locked."""


def open_image(options: ImageOptions) -> int:
    """Open, check and lock the image; never create, truncate or change it.

    Returns a close-on-exec descriptor, which the caller owns.

    Raises:
        ImageInUseError: the image is locked.
        ConfigError: the image cannot be used, or an option does not fit it.
        HostError: the host cannot lock files there.
    """
    label = f"{options.option} {options.path}"
    _check_options(label, options)
    fd = _open(label, options)
    try:
        _check_kind(label, fd)
        size_bytes = _size(label, fd)
        _check_writable(label, options, fd)
        _keep_access_time(fd)
        _warn_of_format(label, fd, size_bytes)
        alignment = _direct_alignment(label, fd) if options.direct and size_bytes else 1
        _check_size(label, options, size_bytes, alignment)
        if options.lock:
            _lock(label, options, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def usable_bytes(block_size: int, size_bytes: int, alignment: int) -> int:
    """Return how many bytes of an image the guest sees: only whole blocks.

    ``block_size`` is that of the guest. ``alignment`` is the one that O_DIRECT asks for, 1 without
    it. All are in bytes.
    """
    return size_bytes - size_bytes % max(SECTOR_BYTES, block_size, alignment)


def _check_options(label: str, options: ImageOptions) -> None:
    size = options.block_size
    if not SECTOR_BYTES <= size <= MAX_BLOCK_BYTES or size & (size - 1):
        raise ConfigError(
            f"{label}: block-size {size} is not a power of two in {SECTOR_BYTES}..{MAX_BLOCK_BYTES}"
        )
    if "\0" in options.path:
        raise ConfigError(f"{brief(label)}: a path with a zero byte")


def _open(label: str, options: ImageOptions) -> int:
    flags = os.O_RDONLY if options.read_only else os.O_RDWR
    # Without O_NONBLOCK, open(2) of a pipe would hang before it can be refused.
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    flags |= 0 if options.follow else os.O_NOFOLLOW
    try:
        return os.open(options.path, flags | (os.O_DIRECT if options.direct else 0))
    except IsADirectoryError:
        raise ConfigError(f"{label}: is a directory") from None
    except PermissionError as error:
        readable = os.access(options.path, os.R_OK)
        raise ConfigError(f"{label}: not {'writable' if readable else 'readable'}") from error
    except OSError as error:
        raise ConfigError(label) from error


def _check_kind(label: str, fd: int) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{label}: is a directory")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ConfigError(f"{label}: neither a regular file nor a block device")


def _keep_access_time(fd: int) -> None:
    """Have reads leave the access time alone, where the file is ours (open(2), O_NOATIME).

    To look at it takes the host a tenth of a 4 KiB read.
    """
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NOATIME)


def _size(label: str, fd: int) -> int:
    """Return the size of the file; some files, such as many in /proc, have none."""
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise ConfigError(f"{label}: has no size that a disk could have") from error


def _check_writable(label: str, options: ImageOptions, fd: int) -> None:
    """Refuse a read-only block device: open(2) for writing succeeds, but every write fails."""
    if options.read_only or not stat.S_ISBLK(os.fstat(fd).st_mode):
        return
    try:
        answer = fcntl.ioctl(fd, _BLKROGET, bytes(_INT.size))
    except OSError:
        return  # the driver does not tell; if the device is read-only, writes fail later
    if _INT.unpack(answer)[0]:
        raise ConfigError(f"{label}: the block device is read-only; ro uses it so")


def _warn_of_format(label: str, fd: int, size_bytes: int) -> None:
    looks_like = foreign_format(fd, size_bytes)
    if looks_like is not None:
        log.warning(
            "%s: looks like %s, but is used as a raw image, as every image is: the guest sees "
            "these bytes as they are (%s)",
            *(label, looks_like.name, looks_like.remedy),
        )


def _check_size(label: str, options: ImageOptions, size_bytes: int, alignment: int) -> None:
    if size_bytes == 0:
        raise ConfigError(f"{label}: is empty")
    block_bytes = max(options.block_size, alignment)
    of_what = "as direct needs it" if alignment > options.block_size else "block-size"
    usable = usable_bytes(options.block_size, size_bytes, alignment)
    if not usable:
        raise ConfigError(f"{label}: {size_bytes} bytes is less than one block of {block_bytes}")
    if usable < size_bytes:
        log.warning(
            "%s: %d bytes is not a multiple of %d (%s): the guest does not see the last %d",
            *(label, size_bytes, block_bytes, of_what, size_bytes - usable),
        )


def _direct_alignment(label: str, fd: int) -> int:
    from disk.raw import direct_alignment

    try:
        return direct_alignment(fd)
    except OSError as error:
        raise ConfigError(f"{label}: direct does not work there") from error


def _lock(label: str, options: ImageOptions, fd: int) -> None:
    try:
        free = ofd_lock(fd, exclusive=not options.read_only)
    except OSError as error:
        raise HostError("lock", options.path, "lock=false goes without") from error
    if not free:
        raise ImageInUseError(f"{label}: locked by another process; does another VM use it?")
