# SPDX-License-Identifier: BSD-3-Clause
"""Huge pages: whether this host makes them without being configured, and how many a guest has."""

from __future__ import annotations

import os
import re
from typing import Final

from sys_util.guest_memory import HUGE_PAGE_BYTES, MEMFD_NAME, GuestMemory


def huge_kib(pid: int) -> int:
    """Return how much of the guest memory that ``pid`` has mapped is mapped as huge pages."""
    with open(f"/proc/{pid}/smaps") as smaps:
        mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read(), flags=re.MULTILINE)
    return sum(
        int(re.findall(r"^ShmemPmdMapped:\s+(\d+) kB", mapping, re.MULTILINE)[0])
        for mapping in mappings
        if f"memfd:{MEMFD_NAME}" in mapping
    )


def _try() -> bool:
    memory = GuestMemory.create([(0, HUGE_PAGE_BYTES)])
    memory.make_huge(0, HUGE_PAGE_BYTES)
    found = huge_kib(os.getpid()) > 0
    memory.close()
    return found


HOST_MAKES_HUGE_PAGES: Final = _try()
