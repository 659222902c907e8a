# SPDX-License-Identifier: BSD-3-Clause
"""The outermost wall of a VM, around all its processes: no signal leaves it."""

from __future__ import annotations

from sys_util import landlock, linux
from sys_util.errors import HostError


def keep_signals_inside() -> None:
    """Let this process and all it forks signal nobody but one another (landlock(7), Linux 6.12).

    An older kernel leaves that to the filters. Sets no_new_privs.

    Raises:
        HostError: the kernel refuses it.
    """
    try:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.keep_signals_inside()
    except OSError as error:
        raise HostError("jail:", "keep signals inside the VM") from error
