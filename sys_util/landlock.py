# SPDX-License-Identifier: BSD-3-Clause
"""Landlock (landlock(7)): a thread, and the threads that it starts later, give up the file system.

Open descriptors stay usable. We forbid all that the running kernel can forbid. The bits below are
the kernel's ABI, the same on every architecture.
"""

from __future__ import annotations

import errno
import os
import stat

from sys_util._linux import lib
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_ACCESS_FS_WRITE_FILE: Final = 1 << 1
_ACCESS_FS_READ_FILE: Final = 1 << 2
_ACCESS_FS_READ_DIR: Final = 1 << 3
ACCESS_FS_REMOVE_FILE: Final = 1 << 5
_ACCESS_FS_MAKE_REG: Final = 1 << 8
_ACCESS_FS_MAKE_SOCK: Final = 1 << 9
_ACCESS_FS_TRUNCATE: Final = 1 << 14
_ACCESS_FS_IOCTL_DEV: Final = 1 << 15
_OF_FILES: Final = _ACCESS_FS_WRITE_FILE | _ACCESS_FS_READ_FILE | _ACCESS_FS_TRUNCATE
# Truncating, and ioctl(2) of a device, hold for a descriptor only if they held when it was opened.
_MAKING: Final = _ACCESS_FS_MAKE_REG | _ACCESS_FS_MAKE_SOCK
_OPENING: Final = _OF_FILES | _ACCESS_FS_READ_DIR | _ACCESS_FS_IOCTL_DEV | _MAKING

# The number of access rights for files in each version of the ABI; later versions have 16 too.
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
# The version that added TCP ports (bind, connect), and the one that added scopes: which abstract
# UNIX sockets can be connected to, and which processes can be signalled.
_NET_ABI: Final = 4
_NET_RIGHTS: Final = 0b11
_SCOPE_ABI: Final = 6
_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0
_SCOPE_SIGNAL: Final = 1 << 1

# All rules of a user fit into one message.
MAX_LANDLOCK_RULES: Final = 32
MAX_LANDLOCK_CHARS: Final = 1024


class LandlockRule(NamedTuple):
    """A path that may be opened; ``access`` is made of the letters r and w."""

    path: str
    access: str


# Errors of a kernel without Landlock, of one where it is switched off, and of a container whose
# seccomp profile is older than Landlock.
_ABSENT: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def abi_version() -> int:
    """Return the version of the kernel's Landlock ABI, 0 without Landlock."""
    version = lib.crosvm_landlock_abi()
    if version >= 0:
        return version
    if -version in _ABSENT:
        return 0
    raise OSError(-version, os.strerror(-version), "landlock_create_ruleset")


def forbid_files(
    removable_in: Iterable[str] = (), *, alone: bool = False, but_opening: bool = False
) -> int:
    """Let this thread open, make, change or remove no file any more; return the ABI's version.

    Version 0 means that nothing was forbidden. From version 4 on TCP is forbidden as well, and from
    version 6 on abstract UNIX sockets. Needs no_new_privs or CAP_SYS_ADMIN.

    Args:
        removable_in: directories whose files can still be removed.
        alone: from version 6 on the thread can signal only processes that it starts later.
        but_opening: files that are there can still be opened, read and written, but for those of
            other processes under /proc that would give their memory; sockets and files can be made.
    """
    version = abi_version()
    if not version:
        return 0
    rights = (1 << _FS_RIGHTS[min(version, max(_FS_RIGHTS))]) - 1
    if but_opening:
        rights &= ~_OPENING
    words = 1 + (version >= _NET_ABI) + (version >= _SCOPE_ABI)
    scope = _SCOPE_ABSTRACT_UNIX_SOCKET | (_SCOPE_SIGNAL if alone else 0)
    ruleset = _check(lib.crosvm_landlock_create(rights, _NET_RIGHTS, scope, words))
    try:
        for path in removable_in:
            _allow_removal(ruleset, path)
        _check(lib.crosvm_landlock_restrict(ruleset))
    finally:
        os.close(ruleset)
    return version


def make_ruleset(rules: Iterable[tuple[str, str]]) -> int:
    """Return a descriptor of rules for ``restrict``, which the caller owns, close-on-exec.

    Args:
        rules: paths and the letters r and w: what may be read and written there, or below there if
            it is a directory. Everything else is forbidden, as ``forbid_files`` does.

    Raises:
        OSError: the kernel has no Landlock, or a path cannot be used, which ``filename`` names.
    """
    version = abi_version()
    if not version:
        raise OSError(errno.EOPNOTSUPP, "the kernel has no Landlock")
    rights = (1 << _FS_RIGHTS[min(version, max(_FS_RIGHTS))]) - 1
    ruleset = _check(lib.crosvm_landlock_create(rights, 0, 0, 1))
    try:
        for path, letters in rules:
            _allow(ruleset, path, _rights(letters) & rights)
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def restrict(ruleset: int) -> None:
    """Let this thread use only the files of a ruleset. Needs no_new_privs or CAP_SYS_ADMIN."""
    _check(lib.crosvm_landlock_restrict(ruleset))


def _rights(letters: str) -> int:
    reading = _ACCESS_FS_READ_FILE | _ACCESS_FS_READ_DIR
    writing = _ACCESS_FS_WRITE_FILE | _ACCESS_FS_TRUNCATE | _MAKING
    return ("r" in letters) * reading | ("w" in letters) * writing


def _allow(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        _check(lib.crosvm_landlock_allow(ruleset, place, rights))
    finally:
        os.close(place)


def keep_signals_inside() -> int:
    """Let this process and those that it starts later signal only one another.

    Return the ABI's version; before version 6 nothing was forbidden. Access to files is not
    restricted. Needs no_new_privs or CAP_SYS_ADMIN.
    """
    version = abi_version()
    if version >= _SCOPE_ABI:
        ruleset = _check(lib.crosvm_landlock_create(0, 0, _SCOPE_SIGNAL, 3))
        try:
            _check(lib.crosvm_landlock_restrict(ruleset))
        finally:
            os.close(ruleset)
    return version


def _allow_removal(ruleset: int, path: str) -> None:
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(lib.crosvm_landlock_allow(ruleset, directory, ACCESS_FS_REMOVE_FILE))
    finally:
        os.close(directory)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
