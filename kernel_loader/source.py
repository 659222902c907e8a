# SPDX-License-Identifier: BSD-3-Clause
"""Read a kernel or initrd from an open file, or from a memfd with an unpacked kernel.

We copy bytes to guest memory through its memfd, not through the mapping. The host's kernel then
copies from page to page, and no page is faulted into this process, which takes half the time. We
never map a file: if it is truncated meanwhile, we report an error instead of dying of SIGBUS.
"""

from __future__ import annotations

import os
import stat

from sys_util.errors import ConfigError, GuestAddressError, raise_host_error
from sys_util.typing import TYPE_CHECKING, Final, NoReturn, Protocol, Self

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory

# The kernel shortens reads above MAX_RW_COUNT. This is a multiple of the page size below it.
_MAX_READ_BYTES: Final = 1 << 30


class Source(Protocol):
    """A sequence of bytes with a known size."""

    what: str
    size: int
    sends: bool

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes, or raise ``ConfigError``."""
        ...

    def copy_to(self, offset: int, memory: GuestMemory, gpa: int, length: int) -> None:
        """Copy ``length`` bytes, from ``offset`` on, to ``gpa``, or raise ``ConfigError``."""
        ...

    def close(self) -> None:
        """Release the file or memory that the source reads."""
        ...


class FileSource:
    """An open regular file. ``what`` names it in messages: ``kernel boot/vmlinux``.

    ``sends`` is whether to copy by sendfile(2), which a filter of this process may forbid later.

    Owns ``fd``. It is public, so that the file can be passed to another process.
    """

    def __init__(self, what: str, fd: int, size: int) -> None:
        self.what = what
        self.size = size
        self.sends = True
        self.fd = fd

    @classmethod
    def open(cls, role: str, path: str, *, follow: bool = True) -> Self:
        """Open ``path`` for reading. Without ``follow`` it must not be a symbolic link.

        Raises:
            ConfigError: a directory, a device, a pipe or an empty file.
            HostError: the host refuses to open it.
        """
        what = f"{role} {path}"
        if "\0" in path:
            raise ConfigError(f"{role} {path!r}: a NUL character in a file name")
        try:
            # Without O_NONBLOCK we would wait here if the file is a FIFO that has no writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
        except OSError as error:
            raise_host_error("open", what, error)
        status = os.fstat(fd)
        problem = _not_usable(status)
        if problem:
            os.close(fd)
            raise ConfigError(f"{what}: {problem}")
        return cls(what, fd, status.st_size)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes of the file."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Read from ``offset`` on into ``target``, until it is full."""
        done = 0
        while done < len(target):
            part = target[done : done + _MAX_READ_BYTES]
            try:
                count = os.preadv(self.fd, [part], offset + done)
            except OSError as error:
                raise_host_error("read", self.what, error)
            if count == 0:
                self._refuse_truncated(offset + done, len(target) - done)
            done += count

    def copy_to(self, offset: int, memory: GuestMemory, gpa: int, length: int) -> None:
        """Copy ``length`` bytes of the file, from ``offset`` on, to ``gpa``."""
        if not self.sends:
            with memory.view(gpa, length) as target:
                self.read_into(offset, target)
            return
        os.lseek(memory.fd, _memfd_offset(memory, gpa, length), os.SEEK_SET)
        done = 0
        while done < length:
            try:
                count = os.sendfile(
                    memory.fd, self.fd, offset + done, min(length - done, _MAX_READ_BYTES)
                )
            except OSError:
                # Not every file system can do sendfile. If there is another cause, preadv fails
                # too and reports it.
                with memory.view(gpa + done, length - done) as target:
                    self.read_into(offset + done, target)
                return
            if count == 0:
                self._refuse_truncated(offset + done, length - done)
            done += count

    def _refuse_truncated(self, end: int, missing_bytes: int) -> NoReturn:
        raise ConfigError(
            f"{self.what}: ends at {end:#x}, {missing_bytes:#x} bytes before it should"
        )

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _memfd_offset(memory: GuestMemory, gpa: int, length: int) -> int:
    for region in memory.regions:
        if region.gpa <= gpa and gpa + length <= region.gpa + region.size_bytes:
            return region.file_offset + gpa - region.gpa
    raise GuestAddressError(gpa, length)


def _not_usable(status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size == 0:
        return "is empty"
    return ""
