# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of a run, which a process of its own reads while the vmm goes on importing modules.

C libraries unpack it, so the vmm does not (``crosvm_py/file_parser/``). It checks the answer, and
copies the initrd and the kernel's segments without looking into them.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack

from crosvm_py.file_parser import protocol
from crosvm_py.file_parser.child import DEADLINE_SECONDS, FileParser, start_parser
from kernel_loader.image import KernelImage, ParsedKernel
from kernel_loader.source import FileSource
from sys_util.errors import ProtocolError, raise_host_error
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.config import RunConfig

# Once the vmm has accepted the unpacked kernel, nobody may change it.
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class _KernelJob:
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

    def work(self) -> protocol.Parsed:
        """Read the kernel."""
        from kernel_loader.parse import parse_kernel

        return protocol.Parsed(parse_kernel(self._source, self._unpacked_fd))


class KernelParser:
    """A process that reads a kernel. Owns it and both files; close it once."""

    def __init__(self, source: FileSource, unpacked_fd: int, parser: FileParser) -> None:
        """Take all of them over; ``unpacked_fd`` can be sealed."""
        self._source = source
        self._unpacked_fd = unpacked_fd
        self._parser = parser

    def image(self, deadline_seconds: float = DEADLINE_SECONDS) -> KernelImage:
        """Wait for the answer and return the kernel, which owns the file that contains it.

        Raises:
            ConfigError: the file is no kernel for this machine, is damaged, or crashes the parser.
            HostError: the host cannot read it.
            VmmError: the parser has a bug, or broke the protocol.
        """
        answer = self._parser.answer(deadline_seconds)
        try:
            if not isinstance(answer, protocol.Parsed):
                raise ProtocolError(f"an unexpected {type(answer).__name__}")
            return self._make_image(answer.kernel)
        except ProtocolError as error:
            raise self._parser.nonsense(error) from error

    def close(self) -> None:
        """End the process, if it has not ended, and close everything that is left."""
        self._parser.close()
        self._source.close()
        if self._unpacked_fd >= 0:
            os.close(self._unpacked_fd)
            self._unpacked_fd = -1

    def _make_image(self, kernel: ParsedKernel) -> KernelImage:
        """Check the parser's answer; the image takes over the file that contains the kernel."""
        source = self._source
        if kernel.unpacked_bytes:
            fcntl.fcntl(self._unpacked_fd, fcntl.F_ADD_SEALS, _SEALS)
            if os.fstat(self._unpacked_fd).st_size < kernel.unpacked_bytes:
                raise ProtocolError(f"{kernel.unpacked_bytes:#x} unpacked bytes that are not there")
            name = f"{source.what} ({kernel.kind.rpartition(' ')[2]} payload)"
            source = FileSource(name, self._unpacked_fd, kernel.unpacked_bytes)
        image = KernelImage(source, kernel)
        if source is self._source:
            self._source = FileSource(source.what, -1, 0)
        else:
            self._unpacked_fd = -1
        return image


def start_kernel_parser(config: RunConfig) -> KernelParser:
    """Fork the process that reads the kernel of a run; the caller has one thread.

    Raises:
        ConfigError: the kernel is no regular file, or empty.
        HostError: the host refuses to open it, or to fork.
    """
    with ExitStack() as undo:
        source = FileSource.open(
            "kernel", config.kernel, follow=config.kernel not in config.guest_files
        )
        undo.callback(source.close)
        try:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            unpacked_fd = os.memfd_create("crosvm_kernel", flags)
        except OSError as error:
            raise_host_error("start", f"a process that reads {source.what}", error)
        undo.callback(os.close, unpacked_fd)
        parser = start_parser(
            _KernelJob(source, unpacked_fd),
            sandbox=config.sandbox,
            log_failures=config.seccomp_log_failures,
        )
        undo.pop_all()
    return KernelParser(source, unpacked_fd, parser)
