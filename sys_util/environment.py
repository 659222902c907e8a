# SPDX-License-Identifier: BSD-3-Clause
"""Forget the environment: where the kernel put it, and where Python has copies of it."""

from __future__ import annotations

import os

from sys_util._linux import ffi, lib
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def forget_environment(kept: Collection[str]) -> None:
    """Overwrite every variable but those ``kept``, for this process and all that it forks.

    The memory in which execve(2) put them is the one that /proc/PID/environ shows; a fork copies
    it. For a process with one thread, and nothing that holds on to a variable's text: a later
    ``putenv`` or change of ``os.environ`` works as ever.
    """
    lib.crosvm_forget_environment(b"".join(os.fsencode(name) + b"\0" for name in kept))
    for name in list(os.environb):
        if os.fsdecode(name) not in kept:
            value = os.environb.pop(name)
            if len(value) > 1:  # else every such bytes object is one and the same
                ffi.memmove(
                    ffi.cast("char *", ffi.from_buffer(value)), bytes(len(value)), len(value)
                )
