# SPDX-License-Identifier: BSD-3-Clause
"""Debian's own kernels, unmodified, and for each an initrd that loads its virtio modules."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.guests import bzimage, debian, initrd
from tests.guests.cache import PROJECT, artefact, run

HERE: Final = Path(__file__).parent
INIT: Final = HERE / "init-initrd.sh"
BUSYBOX: Final = Path("/bin/busybox")
MODULES: Final = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_rng", "virtio_net", "virtio_balloon"),
    *("virtio_console", "virtio_mem", "vmw_vsock_virtio_transport", "ext4", "squashfs", "overlay"),
)


def build(flavour: str) -> Path:
    """Return the folder of a flavour: ``bzImage``, ``vmlinux``, ``initrd.img``, ``release``."""
    package = debian.resolve(f"linux-image-{flavour}-amd64" if flavour else "linux-image-amd64")
    release = package.removeprefix("linux-image-")
    name = flavour or "generic"

    def fill(target: Path) -> None:
        unpacked = target / "package"
        debian.unpack(package, unpacked)
        run("depmod", ["depmod", "-b", unpacked, release])
        image = (unpacked / f"boot/vmlinuz-{release}").read_bytes()
        (target / "bzImage").write_bytes(image)
        (target / "vmlinux").write_bytes(bzimage.unpack(image))
        modules = list(initrd.module_files(unpacked, release, MODULES))
        (target / "initrd.img").write_bytes(initrd.make(BUSYBOX, INIT, modules))
        (target / "release").write_text(f"{release}\n")
        run("remove the package", ["rm", "-r", unpacked])

    inputs: list[str | Path] = [
        package,
        INIT,
        BUSYBOX,
        HERE / "bzimage.py",
        HERE / "initrd.py",
        PROJECT / "crosvm_py/guest/initrd.py",
        *MODULES,
    ]
    return artefact("guests", name, inputs, fill)
