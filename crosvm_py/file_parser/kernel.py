# SPDX-License-Identifier: BSD-3-Clause
"""How a kernel file is read: the magic numbers in it tell which modules unpack the rest."""

from __future__ import annotations

from crosvm_py.file_parser.protocol import Parsed
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel_loader.source import FileSource


class KernelJob:
    """A kernel, and an empty file in memory to unpack it into. Its maker owns both."""

    def __init__(self, source: FileSource, unpacked_fd: int) -> None:
        self._source = source
        self._unpacked_fd = unpacked_fd
        self.what = source.what
        self.fds = (source.fd, unpacked_fd)
        self.size_bytes = source.size

    def prepare(self) -> None:
        """Import what unpacks this kernel."""
        from kernel_loader.parse import import_unpacker

        import_unpacker(self._source)

    def work(self) -> Parsed:
        """Read the kernel."""
        from kernel_loader.parse import parse_kernel

        return Parsed(parse_kernel(self._source, self._unpacked_fd))
