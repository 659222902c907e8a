# SPDX-License-Identifier: BSD-3-Clause
"""A Debian that is newer than the one that the project is developed on: its tree and its kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from tests.guests import debian
from tests.guests.cache import PROJECT, artefact, run

SUITE: Final = "trixie"
PACKAGES: Final = Path(__file__).parent / "newer-packages.txt"
# The meta package's first dependency is the kernel; apt in the tree knows where it is.
DOWNLOAD_KERNEL: Final = """set -eu
mkdir "$1/kernel"
chroot "$1" apt-cache depends --important linux-image-cloud-amd64 >"$1/kernel/depends"
name=$(sed -n 's/.*Depends: //p' "$1/kernel/depends" | head -n 1)
chroot "$1" sh -c "cd /kernel; apt-get -q -o APT::Sandbox::User=root download $name"
"""
# Pure Python, and in no Debian.
PYSECCOMP: Final = PROJECT / ".venv/lib/python3.11/site-packages/pyseccomp.py"


class Newer(NamedTuple):
    """A configured tree, and a Debian package with a kernel."""

    tree: Path
    kernel: Path

    @property
    def package(self) -> str:
        """The name of the kernel's package."""
        return self.kernel.name.partition("_")[0]

    def python(self) -> list[str]:
        """Return the words that run the tree's Python on this machine, with the tree's C library.

        It sees this machine's files: good for compiling sources, not for trying anything out.
        """
        libraries = self.tree / "usr/lib/x86_64-linux-gnu"
        loader = str(libraries / "ld-linux-x86-64.so.2")
        program = str(self.tree / "usr/bin/python3")
        return [loader, "--library-path", str(libraries), program, "-I"]


def build() -> Newer:
    """Return the newer Debian, after making it when it is missing."""
    packages = debian.package_list(PACKAGES.read_text())
    inputs: list[str | Path] = [SUITE, DOWNLOAD_KERNEL, *packages, PYSECCOMP]
    folder = artefact("guests", SUITE, inputs, lambda target: _fill(target, packages))
    (kernel,) = (folder / "kernel").glob("*.deb")
    return Newer(folder / "tree", kernel)


def _fill(target: Path, packages: list[str]) -> None:
    tree = target / "tree"
    debian.tree(tree, packages, SUITE, [DOWNLOAD_KERNEL])
    (tree / "kernel").rename(target / "kernel")
    run("remove package lists", ["rm", "-rf", tree / "var/cache", tree / "var/lib/apt"])
    site = tree / "usr/local/lib" / os.readlink(tree / "usr/bin/python3") / "dist-packages"
    site.mkdir(parents=True, exist_ok=True)
    (site / PYSECCOMP.name).write_bytes(PYSECCOMP.read_bytes())
