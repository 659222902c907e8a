# SPDX-License-Identifier: BSD-3-Clause
"""A small test host for one guest: Python, the project and the programs of the demo, nothing else.

It is made in seconds, of packages that are unpacked but not configured, and boots without a
snapshot. ::

    python3 -m tests.kvmhost.small build
    python3 -m tests.kvmhost.small run DIR -- CMD...     DIR is /guests/guest in it
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from crosvm_py.guest.apt import Apt, Source
from crosvm_py.guest.make import KERNEL_PACKAGE, read_kernel
from crosvm_py.guest.modules import in_order
from crosvm_py.guest.root import applets
from crosvm_py.guest.tools import Progress
from sys_util.errors import VmmError, describe
from tests.guests import initrd, root
from tests.guests.cache import CACHE, BuildError, artefact, say
from tests.guests.cache import run as run_quietly
from tests.kvmhost import image
from tests.kvmhost.client import HostGoneError, run_attached
from tests.kvmhost.host import SOURCES, Host
from tests.kvmhost.protocol import RunRequest

PACKAGES: Final = (
    *("python3", "libseccomp2", "libcap2", "libc-bin", "busybox-static", "dash", "procps"),
)
MODULES: Final = ("virtio_console", "kvm_amd", "vhost_vsock", "vhost_net", "tun")
DISTRIBUTIONS: Final = ("cffi", "msgpack", "pyseccomp", "python-prctl", "lz4", "zstandard")
SYSTEM_MIB: Final = 300
GUEST_MIB: Final = 1024
SCRATCH_MIB: Final = 256
SECONDS: Final = 300.0
PRODUCT: Final = tuple(name for name in SOURCES if name != "tests")


def build() -> Path:
    """Return the folder with the host's kernel, initrd and system disk."""
    inputs: list[str | Path] = [*PACKAGES, *MODULES, image.FILES, *image.AGENT, Path(__file__)]
    return artefact(image.AREA, "small", inputs, _fill)


def _fill(target: Path) -> None:
    apt = Apt(Source(), Progress(say, 1))
    try:
        apt.refresh()
        name = apt.resolve(KERNEL_PACKAGE)
        (kernel,) = apt.download([name])
        packages = apt.download_all(PACKAGES)
    finally:
        apt.close()
    names = (*image.BOOT_MODULES, *MODULES)
    modules = dict(read_kernel(kernel, str(target / "bzImage"), names))
    tree = target / "tree"
    tree.mkdir()
    say(f"small: unpacking {len(packages)} Debian packages")
    for package in packages:
        run_quietly("unpack", ["dpkg-deb", "-x", package, tree])
    _complete(tree)
    _install_modules(tree, name.removeprefix("linux-image-"), modules)
    files = [tree / "modules" / f"{name}.ko" for name in in_order(image.BOOT_MODULES, modules)]
    archive = initrd.make(tree / "bin/busybox", image.FILES / "initrd-init.sh", files)
    (target / "initrd.img").write_bytes(archive)
    say("small: making its disk")
    root.ext4(target / "system.ext4", tree, SYSTEM_MIB, *image.PLAIN)
    shutil.rmtree(tree)


def _complete(tree: Path) -> None:
    """Add what unpacked packages lack, and what makes the tree a test host."""
    python = os.readlink(tree / "usr/bin/python3")
    for folder in ("dev", "mnt", "proc", "sys", "run", "tmp", "root", "usr/local/bin", "usr/sbin"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\ntty:x:5:\n")
    folders = [tree / name for name in ("bin", "sbin", "usr/bin", "usr/sbin")]
    for applet in applets((tree / "bin/busybox").read_bytes()):
        if not any((folder / applet).exists() for folder in folders):
            (tree / "bin" / applet).symlink_to("busybox")
    if not (tree / "bin/sh").exists():
        (tree / "bin/sh").symlink_to("dash")
    run_quietly("ldconfig", ["ldconfig", "-r", tree])
    image._install_files(tree)
    site = tree / "usr/local/lib" / python / "dist-packages"
    site.parent.mkdir(parents=True)
    site.symlink_to("/guests/python")


def _install_modules(tree: Path, release: str, modules: dict[str, bytes]) -> None:
    folder = tree / "lib/modules" / release
    folder.mkdir(parents=True)
    (tree / "modules").symlink_to(f"lib/modules/{release}")
    lines = []
    for name, data in modules.items():
        (folder / f"{name}.ko").write_bytes(data)
        needed = [it for it in reversed(in_order([name], modules)) if it != name]
        lines.append(f"{name}.ko: {' '.join(f'{it}.ko' for it in needed)}\n")
    (folder / "modules.dep").write_text("".join(lines))


def _disks(system: Path, guest: Path, target: Path) -> image.Image:
    """Return the parts of a host that has ``guest`` and the project's libraries on a disk."""
    disk = target / "tree"
    libraries = disk / "python"
    for name in DISTRIBUTIONS:
        (found,) = importlib.metadata.distributions(name=name, path=[str(image.SITE_PACKAGES)])
        files = {Path(file) for file in found.files or () if ".." not in file.parts}
        for module in (found.read_text("top_level.txt") or "").split():
            installed = image.SITE_PACKAGES.glob(f"{module}.*")
            files |= {path.relative_to(image.SITE_PACKAGES) for path in installed}
        for file in sorted(files):
            if (image.SITE_PACKAGES / file).is_file():
                (libraries / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(image.SITE_PACKAGES / file, libraries / file)
    shutil.copytree(guest, disk / "guest")
    root.ext4(target / "guests.ext4", disk, GUEST_MIB, *image.PLAIN)
    root.ext4(target / "scratch.ext4", None, SCRATCH_MIB, *image.PLAIN)
    return image.Image(
        system / "bzImage",
        system / "initrd.img",
        system / "system.ext4",
        target / "guests.ext4",
        target / "scratch.ext4",
    )


def run(guest: Path, command: list[str]) -> int:
    """Run a command in a fresh small host and return its exit status."""
    system = build()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        say("small: starting the host")
        parts = _disks(system, guest, Path(folder))
        with Host.cold(parts) as host:
            say("small: copying the project into it")
            host.sync(PRODUCT)
            connection = host.connect()
            try:
                say("small: running in it: " + " ".join(command))
                request = RunRequest(command, "/project", "root", {})
                return run_attached(connection, request, timeout=SECONDS)
            finally:
                connection.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.kvmhost.small", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build")
    runner = verbs.add_parser("run")
    runner.add_argument("guest", type=Path)
    runner.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "build":
            build()
            return 0
        return run(options.guest, options.command)
    except (VmmError, BuildError, HostGoneError) as error:
        sys.stderr.write(f"kvmhost: {describe(error)}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
