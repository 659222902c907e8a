# SPDX-License-Identifier: BSD-3-Clause
"""Drop the descriptors and the environment that a run inherits from its parent.

All processes of a VM are forked from the first, and a guest may take over some of them. The parent
may have secrets in the environment, and open files that are not meant for us. A run keeps only the
descriptors that an option names, and a few variables.
"""

from __future__ import annotations

import fcntl
import os

from crosvm_py import bundle
from sys_util import linux
from sys_util.environment import forget_environment
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Variables that a run needs: for the policy cache, to find passt, for a hint on how to make a TAP,
# and for the time in the log. None of them is a secret.
KEPT: Final = frozenset({"HOME", "PATH", "TZ", "USER", "XDG_CACHE_HOME"})
_FIRST: Final = 3  # after the standard streams

_found: set[int] = set()
_ours: set[int] = set()


def keep_open(fds: Iterable[int]) -> None:
    """Tell that these descriptors were not inherited: the program opened them before the run."""
    _ours.update(fds)


def drop_inherited() -> None:
    """Forget the environment, and make all inherited descriptors close-on-exec.

    Call it at the start of a run, before anything is opened or forked, and ``close_unused`` when
    all options have been handled.

    Raises:
        OSError: the kernel is older than Linux 5.11 and lacks CLOSE_RANGE_CLOEXEC.
    """
    linux.close_on_exec(_FIRST)
    _found.update(_open_fds() - _ours - bundle.used_fds())
    forget_environment(KEPT)


def close_unused(keep: Iterable[int]) -> None:
    """Close all inherited descriptors but ``keep``; the run has opened all its files.

    Otherwise the vmm would hold them while the guest runs, for example a socket that can send to
    any address. A descriptor that an option names as /dev/fd/N has been opened again or duplicated.
    """
    for fd in _found.difference(keep):
        os.close(fd)
    _found.clear()


def _open_fds() -> set[int]:
    """Return all open descriptors but the standard streams; none if there is no /proc."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    return {fd for fd in map(int, names) if fd >= _FIRST and _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:  # the descriptor that listdir used for the directory
        return False
    return True
