# SPDX-License-Identifier: BSD-3-Clause
"""The initial RAM disk of the test guests, with busybox and kernel modules."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from crosvm_py.guest.initrd import Archive
from tests.guests.cache import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FOLDERS: Final = ("bin", "dev", "etc", "lower", "modules", "mnt", "proc", "run", "sys", "tmp")
CONSOLE: Final = (5, 1)


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
