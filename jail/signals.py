# SPDX-License-Identifier: BSD-3-Clause
"""Keep all processes of a VM from sending signals to processes outside it."""

from __future__ import annotations

from sys_util import landlock, linux
from sys_util.errors import HostError


def keep_signals_inside() -> None:
    """Let this process and all that it forks signal only one another (landlock(7), Linux 6.12).

    On an older kernel only the seccomp filters prevent it. Sets no_new_privs.

    Raises:
        HostError: the kernel refuses it.
    """
    try:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.keep_signals_inside()
    except OSError as error:
        raise HostError("jail:", "keep signals inside the VM") from error
