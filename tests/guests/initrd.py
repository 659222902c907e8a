# SPDX-License-Identifier: BSD-3-Clause
"""Initial RAM disks: a writer for cpio's "newc" format, and one with busybox and kernel modules."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from tests.guests.cache import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FOLDERS: Final = ("bin", "dev", "etc", "lower", "modules", "mnt", "proc", "run", "sys", "tmp")
CONSOLE: Final = (5, 1)


class Archive:
    """The bytes of a newc archive, entry by entry (the kernel's early-userspace document)."""

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
        """Close the archive and return it."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def module_files(tree: Path, release: str, names: Sequence[str]) -> Iterator[Path]:
    """Yield the files of kernel modules under ``tree``, each after all that it needs."""
    seen: set[str] = set()
    for name in names:
        shown = run(f"modules of {name}", ["modprobe", "-d", tree, "-S", release, "-D", name])
        for line in shown.splitlines():
            kind, _, file = line.partition(" ")
            file = file.strip()
            if kind == "insmod" and file not in seen:
                seen.add(file)
                yield tree / file.removeprefix(str(tree)).lstrip("/")


def make(busybox: Path, init: Path, modules: Sequence[Path]) -> bytes:
    """Return an archive of a busybox script as ``/init``, and ``/modules`` with their ``order``."""
    archive = Archive()
    for folder in FOLDERS:
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, rdev=CONSOLE)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, init.read_bytes())
    for module in modules:
        archive.add(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    order = "".join(f"{module.name}\n" for module in modules)
    archive.add("modules/order", stat.S_IFREG | 0o644, order.encode())
    return archive.finish()
