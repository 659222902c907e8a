# SPDX-License-Identifier: BSD-3-Clause
"""Overwrite the environment, both where the kernel stored it and in Python's copies."""

from __future__ import annotations

import os

from sys_util._linux import ffi, lib
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def forget_environment(kept: Collection[str]) -> None:
    """Overwrite every variable but those ``kept``, for this process and all that it forks.

    /proc/PID/environ shows the memory in which execve(2) stored the variables, and a fork copies
    that memory. Call this in a process with one thread, before anything keeps a pointer to the text
    of a variable. ``putenv`` and ``os.environ`` can be used afterwards as usual.
    """
    lib.crosvm_forget_environment(b"".join(os.fsencode(name) + b"\0" for name in kept))
    for name in list(os.environb):
        if os.fsdecode(name) not in kept:
            value = os.environb.pop(name)
            if len(value) > 1:  # Python shares the bytes objects that are shorter
                ffi.memmove(
                    ffi.cast("char *", ffi.from_buffer(value)), bytes(len(value)), len(value)
                )
