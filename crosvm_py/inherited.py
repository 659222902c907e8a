# SPDX-License-Identifier: BSD-3-Clause
"""What a run inherits from whoever starts it, and passes on to nobody: descriptors, environment.

Of the descriptors it keeps those that an option names.

Every process of a VM is forked from the first, and a guest may take some over. Whoever starts a VM
may have secrets in the environment, and open files that no program of ours is meant to have.
"""

from __future__ import annotations

import fcntl
import os

from sys_util import linux
from sys_util.environment import forget_environment
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# What a run still asks for: where its policy cache is, where passt is, who is asked to make a TAP,
# and what time it is in the log. No secret is in any of them.
_KEPT: Final = frozenset({"HOME", "PATH", "TZ", "USER", "XDG_CACHE_HOME"})
_FIRST: Final = 3  # behind the standard streams

_found: set[int] = set()


def keep_to_oneself() -> None:
    """Forget the environment, and close every descriptor where another program is executed.

    For the start of a run, before it opens or forks anything. ``close_unused`` follows when every
    option has been read.

    Raises:
        OSError: the kernel has no close_range(2) that does so, which is there since Linux 5.11.
    """
    linux.close_on_exec(_FIRST)
    _found.update(_open_fds())
    forget_environment(_KEPT)


def close_unused(keep: Iterable[int]) -> None:
    """Close what was inherited and is not in ``keep``; for a run that has opened all its files.

    The vmm would have it as long as the guest runs: a socket, for example, that sends to anybody.
    What an option names as a path, /dev/fd/N, was opened anew or duplicated.
    """
    for fd in _found.difference(keep):
        os.close(fd)
    _found.clear()


def _open_fds() -> list[int]:
    """Return what is open behind the standard streams; nothing where there is no /proc."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    return [fd for fd in map(int, names) if fd >= _FIRST and _is_open(fd)]


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:  # the descriptor by which the directory was read
        return False
    return True
