# SPDX-License-Identifier: BSD-3-Clause
"""Landlock (landlock(7)): a thread, and those it starts from then on, give up the file system.

What is open stays open and usable. Whatever the kernel knows how to forbid is forbidden; the bits
below are those of the kernel's ABI, which are the same on every architecture.
"""

from __future__ import annotations

import errno
import os

from sys_util._linux import lib
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ACCESS_FS_REMOVE_FILE: Final = 1 << 5

# How many of the access rights for files each version of the ABI has; later ones have the last.
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
# From these versions on: TCP ports (bind, connect), and who is reached (abstract UNIX sockets,
# signals).
_NET_ABI: Final = 4
_NET_RIGHTS: Final = 0b11
_SCOPE_ABI: Final = 6
_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0
_SCOPE_SIGNAL: Final = 1 << 1

# A kernel without it, one where it is switched off, and a container whose filter predates it.
_ABSENT: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def abi_version() -> int:
    """Return the version of the kernel's Landlock, 0 where there is none."""
    version = lib.crosvm_landlock_abi()
    if version >= 0:
        return version
    if -version in _ABSENT:
        return 0
    raise OSError(-version, os.strerror(-version), "landlock_create_ruleset")


def forbid_files(removable_in: Iterable[str] = (), *, alone: bool = False) -> int:
    """Let this thread open, make, change or remove no file any more; return the ABI's version.

    With version 0 nothing has changed. TCP and abstract UNIX sockets are forbidden as well from
    versions 4 and 6 on. Needs no_new_privs or CAP_SYS_ADMIN.

    Args:
        removable_in: directories whose files can still be removed.
        alone: from version 6 on signals to other processes are forbidden as well, but for those
            that it starts from then on.
    """
    version = abi_version()
    if not version:
        return 0
    rights = (1 << _FS_RIGHTS[min(version, max(_FS_RIGHTS))]) - 1
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


def keep_signals_inside() -> int:
    """Let this process and those it starts from then on signal one another only.

    Return the ABI's version; before version 6 nothing has changed. Files and mounts stay as they
    were. Needs no_new_privs or CAP_SYS_ADMIN.
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
