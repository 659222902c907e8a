# SPDX-License-Identifier: BSD-3-Clause
"""The initial RAM disk of a guest: busybox, kernel modules, and scripts that start the system."""

from __future__ import annotations

import os
import stat

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE: Final = os.path.dirname(os.path.abspath(__file__))
_FOLDERS: Final = ("bin", "crosvm", "dev", "lower", "modules", "new", "proc", "run", "sys")
# The commands that init.sh uses.
_APPLETS: Final = (
    *("cat", "cp", "insmod", "mkdir", "mount", "poweroff", "sh", "sleep", "switch_root", "umount"),
)
_CONSOLE: Final = (5, 1)


class Archive:
    """The bytes of a cpio archive in its "newc" format, entry by entry.

    Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def add(self, name: str, mode: int, data: bytes = b"", rdev: tuple[int, int] = (0, 0)) -> None:
        """Append one entry; ``data`` is the content, or the target of a symbolic link."""
        self._count += 1
        path = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, size, device of the file, rdev, name size, check
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        self._parts += [_padded(header + path), _padded(data)]

    def finish(self) -> bytes:
        """Append the trailer and return the archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def make_initrd(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the archive; ``modules`` are names and contents in the order of loading."""
    archive = Archive()
    for folder in _FOLDERS:
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, rdev=_CONSOLE)
    archive.add("crosvm/busybox", stat.S_IFREG | 0o755, busybox)
    for name in _APPLETS:
        archive.add(f"bin/{name}", stat.S_IFLNK | 0o777, b"/crosvm/busybox")
    archive.add("init", stat.S_IFREG | 0o755, _script("init.sh"))
    for name in ("session", "dhcp"):
        archive.add(f"crosvm/{name}", stat.S_IFREG | 0o755, _script(f"{name}.sh"))
    for name, data in modules:
        archive.add(f"modules/{name}.ko", stat.S_IFREG | 0o644, data)
    order = "".join(f"{name}\n" for name, _ in modules)
    archive.add("modules/order", stat.S_IFREG | 0o644, order.encode())
    return archive.finish()


def _script(name: str) -> bytes:
    with open(os.path.join(_HERE, name), "rb") as file:
        return file.read()
