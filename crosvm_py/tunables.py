# SPDX-License-Identifier: BSD-3-Clause
"""Remove a tunable of the C library that is incompatible with our seccomp policies.

``glibc.malloc.hugetlb`` makes malloc(3) ask for huge pages by madvise(2) or mmap(2). Our policies
do not allow these calls, and our processes are too small to profit from huge pages. Without this, a
process would be killed at some point that depends on how its heap grows.
"""

from __future__ import annotations

import os
import sys

from sys_util.typing import Final

_VARIABLE: Final = "GLIBC_TUNABLES"
_HUGE_PAGES: Final = "glibc.malloc.hugetlb="


def run_without_huge_pages() -> None:
    """Execute the program again without the tunable; return if it is not set.

    The C library reads its tunables once, before our first instruction. Call this before anything
    is opened or started.
    """
    tunables = os.environ.get(_VARIABLE, "")
    kept = without_huge_pages(tunables)
    if kept == tunables:
        return
    environment = dict(os.environ)
    environment[_VARIABLE] = kept
    os.execve(sys.executable, sys.orig_argv, environment)


def without_huge_pages(tunables: str) -> str:
    """Return the value of ``GLIBC_TUNABLES`` without the tunable for huge pages."""
    words = tunables.split(":")
    return ":".join(word for word in words if not word.startswith(_HUGE_PAGES))
