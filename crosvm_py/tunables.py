# SPDX-License-Identifier: BSD-3-Clause
"""The tunables of the C library that our seccomp policies do not go with.

``glibc.malloc.hugetlb`` makes malloc(3) ask for huge pages, by madvise(2) or mmap(2). No process of
ours has the memory for them to matter, and no policy allows the calls: which of the processes would
ask, and when, depends on how its heap happens to grow.
"""

from __future__ import annotations

import os
import sys

from sys_util.typing import Final

_VARIABLE: Final = "GLIBC_TUNABLES"
_HUGE_PAGES: Final = "glibc.malloc.hugetlb="


def leave_huge_pages() -> None:
    """Start the program anew without huge pages in its heap, where the environment asks for them.

    The C library reads its tunables once, before the first instruction of ours. To be called before
    anything is opened or started; returns where there is nothing to change.
    """
    tunables = os.environ.get(_VARIABLE, "")
    kept = without_huge_pages(tunables)
    if kept == tunables:
        return
    environment = dict(os.environ)
    environment[_VARIABLE] = kept
    os.execve(sys.executable, sys.orig_argv, environment)


def without_huge_pages(tunables: str) -> str:
    """Return the value of ``GLIBC_TUNABLES`` less what asks for huge pages."""
    words = tunables.split(":")
    return ":".join(word for word in words if not word.startswith(_HUGE_PAGES))
