# SPDX-License-Identifier: BSD-3-Clause
"""One page of 64-bit numbers that one process writes and another one reads at any time.

Each number is loaded and stored as a whole, through a view of 64-bit items. ``struct.pack_into``
would not do: it stores zeros first. Two numbers that are read from a page may be from different
moments.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from sys_util.errors import raise_host_error
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Self

_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SharedPage:
    """A page in a memfd. Owns the descriptor and the mapping."""

    def __init__(self, fd: int) -> None:
        """Map the page behind ``fd`` and own ``fd``. Call ``create`` or ``attach`` instead."""
        self.fd = fd
        self.cells: memoryview[int] = memoryview(
            mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED)
        ).cast("Q")

    @classmethod
    def create(cls, name: str) -> Self:
        """Make a page of zeros that nobody can resize.

        Raises:
            HostError: the host refuses the memfd or the mapping.
        """
        fd = -1
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, mmap.PAGESIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise_host_error("map", f"the shared page {name}", error)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map a page that the vmm made; takes ownership of ``fd``, on failure too.

        Raises:
            HostError: the host refused the mapping.
        """
        try:
            page = cls(fd)
        except OSError as error:
            raise_host_error("map", "a shared page", error)
        finally:
            os.close(fd)  # the mapping has a duplicate
        page.fd = -1
        return page

    def close(self) -> None:
        """Unmap the page and close its descriptor."""
        self.cells.release()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
