# SPDX-License-Identifier: BSD-3-Clause
"""Pages for the counters of devices that come while the guest runs.

The vmm can neither make nor map memory then, so the pages are made before. Each device has a page
to itself, which no other device can read or write. A page that nobody has touched takes no memory.
"""

from __future__ import annotations

from sys_util.shared_page import SharedPage


class PagePool:
    """Owns pages that no device uses, and lends them."""

    def __init__(self, count: int) -> None:
        """Make so many pages.

        Raises:
            HostError: the host refuses it.
        """
        self._every = [SharedPage.create("crosvm_counters") for _ in range(count)]
        self._free = list(self._every)

    def take(self) -> SharedPage | None:
        """Lend a page of zeros; ``None`` if there is none left."""
        return self._free.pop() if self._free else None

    def give_back(self, page: SharedPage) -> None:
        """Take a page back that no process has mapped any more."""
        for at in range(len(page.cells)):
            page.cells[at] = 0
        self._free.append(page)

    def close(self) -> None:
        """Unmap and close every page, the lent ones too."""
        for page in self._every:
            page.close()
