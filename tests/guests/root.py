# SPDX-License-Identifier: BSD-3-Clause
"""The root image of the guests: a few programs with their libraries, as squashfs and as ext4."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tests.guests import base
from tests.guests.cache import artefact, run

HERE: Final = Path(__file__).parent
INIT: Final = HERE / "init-root.sh"
PROGRAMS: Final = (
    *("/bin/busybox", "/bin/lsblk", "/bin/dd", "/bin/dmesg", "/sbin/blkdiscard", "/sbin/blockdev"),
    *("/sbin/e2fsck", "/sbin/mke2fs", "/sbin/dumpe2fs", "/usr/bin/sha256sum", "/usr/bin/fio"),
    *("/usr/bin/iperf3", "/usr/bin/socat", "/usr/bin/lspci", "/usr/bin/lscpu"),
)
PLUGINS: Final = "usr/lib/x86_64-linux-gnu/fio"  # engines that fio loads by name
LINKS: Final = {"sbin/mkfs.ext4": "mke2fs", "sbin/fsck.ext4": "e2fsck", "bin/sh": "busybox"}
FOLDERS: Final = ("proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc", "var", "bin", "sbin")
EXT4_MIB: Final = 256


def libraries(ldd_output: str) -> set[str]:
    """Return the absolute paths in what ``ldd`` printed."""
    words = (word for line in ldd_output.splitlines() for word in line.split())
    return {word for word in words if word.startswith("/") and not word.endswith(":")}


def _copy(tree: Path, root: Path, path: str) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(tree / path.lstrip("/"), target)


def _populate(tree: Path, root: Path) -> None:
    # As in Debian, /bin, /sbin and /lib* are links into /usr.
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    plugins = [f"/{path.relative_to(tree)}" for path in sorted((tree / PLUGINS).glob("*.so"))]
    dynamic = [path for path in PROGRAMS if path != "/bin/busybox"] + plugins
    shown = run("ldd", ["chroot", str(tree), "ldd", *dynamic])
    for path in (*PROGRAMS, *plugins, *sorted(libraries(shown))):
        _copy(tree, root, path)
    for name, destination in LINKS.items():
        (root / name).symlink_to(destination)
    applets = run("busybox", [tree / "bin/busybox", "--list"]).split()
    for applet in applets:
        if not any((root / folder / applet).exists() for folder in ("bin", "sbin")):
            (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin/init").unlink(missing_ok=True)
    shutil.copy(INIT, root / "sbin/init")
    (root / "sbin/init").chmod(0o755)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


def ext4(image: Path, tree: Path | None, size_mib: int, *options: str) -> None:
    """Make an ext4 image file with the content of ``tree``; unused blocks stay holes."""
    image.unlink(missing_ok=True)
    words = ["mkfs.ext4", "-q", "-F", "-m0", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"]
    content = ["-d", str(tree)] if tree else []
    run("mkfs.ext4", [*words, *options, *content, str(image), f"{size_mib}M"])


def build() -> Path:
    """Return the folder with ``root.squashfs`` and ``root.ext4``."""
    tree = base.build()

    def fill(target: Path) -> None:
        root = target / "tree"
        root.mkdir()
        _populate(tree, root)
        options = ["-comp", "zstd", "-all-root", "-no-progress", "-quiet", "-no-xattrs"]
        run("mksquashfs", ["mksquashfs", root, target / "root.squashfs", *options])
        ext4(target / "root.ext4", root, EXT4_MIB)
        shutil.rmtree(root)

    return artefact("guests", "root", [tree.parent.name, INIT, Path(__file__)], fill)
