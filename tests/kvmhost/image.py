# SPDX-License-Identifier: BSD-3-Clause
"""The disks of the test host: its system, the guests, a scratch disk; its kernel and initrd."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from tests.guests import base, builtin, debian, initrd, newer, root, stock
from tests.guests.cache import PROJECT, BuildError, artefact, run, say

HERE: Final = Path(__file__).parent
FILES: Final = HERE / "files"
AREA: Final = "kvmhost"
KERNEL: Final = "linux-image-cloud-amd64"
RELEASES: Final = (debian.SUITE, newer.SUITE)
BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "overlay")
SITE_PACKAGES: Final = PROJECT / ".venv/lib/python3.11/site-packages"
# The same versions inside as outside: the project's extension modules need their cffi.
DISTRIBUTIONS: Final = (
    *("cffi", "msgpack", "pyseccomp", "python-prctl", "lz4", "zstandard", "pytest", "hypothesis"),
    *("iniconfig", "pluggy", "packaging", "pygments", "sortedcontainers"),
)
AGENT: Final = (PROJECT / "tests/__init__.py", *(HERE / f"{it}.py" for it in ("agent", "protocol")))
TESTER_UID: Final = 1000
KVM_GID: Final = 108
SYSTEM_MIB: Final = 1400
SCRATCH_MIB: Final = 8192
# No journal: the disks are thrown away, and a restored host must find them as it left them.
PLAIN: Final = ("-O", "^has_journal,^metadata_csum,uninit_bg")


class Image(NamedTuple):
    """Paths of what QEMU needs to start the host."""

    kernel: Path
    initrd: Path
    system: Path
    guests: Path
    scratch: Path

    def identity(self) -> str:
        """Return a text that differs when any of the parts does."""
        return " ".join(f"{path.parent.name}/{path.name}" for path in self)


def build(release: str = debian.SUITE) -> Image:
    """Return the parts of the host of a Debian release, after making what is missing."""
    guests = {
        "builtin": builtin.build(),
        "cloud": stock.build("cloud"),
        "generic": stock.build(""),
        "root": root.build(),
    }
    system = _newer_system() if release == newer.SUITE else _system()
    disk = artefact(
        AREA,
        "guests",
        [folder.name for folder in guests.values()],
        lambda target: _build_guests(target, guests),
    )
    scratch = artefact(
        AREA,
        "scratch",
        [str(SCRATCH_MIB), Path(__file__)],
        lambda target: root.ext4(
            target / "scratch.ext4", None, SCRATCH_MIB, *PLAIN, "-i", "262144"
        ),
    )
    return Image(
        system / "bzImage",
        system / "initrd.img",
        system / "system.ext4",
        disk / "guests.ext4",
        scratch / "scratch.ext4",
    )


def _system() -> Path:
    tree = base.build()
    package = debian.resolve(KERNEL)
    versions = [f"{name} {_distribution(name).version}" for name in DISTRIBUTIONS]

    def fill(target: Path) -> None:
        debian.unpack(package, target / "package")
        _build_system(target, tree, package)

    inputs: list[str | Path] = [tree.parent.name, package, *versions, FILES, *AGENT, Path(__file__)]
    return artefact(AREA, "system", inputs, fill)


def _newer_system() -> Path:
    found = newer.build()

    def fill(target: Path) -> None:
        run("unpack the kernel", ["dpkg-deb", "-x", found.kernel, target / "package"])
        _build_system(target, found.tree, found.package)

    inputs: list[str | Path] = [
        found.tree.parent.name,
        found.package,
        FILES,
        *AGENT,
        Path(__file__),
    ]
    return artefact(AREA, f"{newer.SUITE}-system", inputs, fill)


def _distribution(name: str) -> importlib.metadata.Distribution:
    found = importlib.metadata.distributions(name=name, path=[str(SITE_PACKAGES)])
    for distribution in found:
        return distribution
    raise BuildError(f"{name} is not in {SITE_PACKAGES} (tests/setup.sh puts it there)")


def _build_system(target: Path, tree: Path, package: str) -> None:
    release = package.removeprefix("linux-image-")
    system = target / "tree"
    run("copy the Debian tree", ["cp", "-a", tree, system])
    shutil.move(target / f"package/boot/vmlinuz-{release}", target / "bzImage")
    (modules,) = (target / "package").glob("**/lib/modules")
    shutil.move(modules, system / "usr/lib/modules")
    compressed = sorted((system / "usr/lib/modules").rglob("*.ko.xz"))
    run("unpack modules", ["xz", "-d", "-T0", *compressed] if compressed else ["true"])
    run("depmod", ["depmod", "-b", system, release])
    needed = list(initrd.module_files(system, release, BOOT_MODULES))
    archive = initrd.make(system / "bin/busybox", FILES / "initrd-init.sh", needed)
    (target / "initrd.img").write_bytes(archive)
    if (system / "usr/bin/python3.11").exists():  # a newer Debian has them as packages
        _install_python(system / "usr/local/lib/python3.11/dist-packages")
    _install_files(system)
    say("system: making its disk")
    root.ext4(target / "system.ext4", system, SYSTEM_MIB, *PLAIN)
    run("remove the tree", ["rm", "-r", system, target / "package"])


def _install_python(target: Path) -> None:
    for name in DISTRIBUTIONS:
        distribution = _distribution(name)
        files = {Path(file) for file in distribution.files or () if ".." not in file.parts}
        # What setuptools installed by itself lists its sources, not the extension module.
        for module in (distribution.read_text("top_level.txt") or "").split():
            files |= {path.relative_to(SITE_PACKAGES) for path in SITE_PACKAGES.glob(f"{module}.*")}
        for file in sorted(files):
            if (SITE_PACKAGES / file).is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(SITE_PACKAGES / file, target / file)
    run("compile", ["/usr/bin/python3", "-m", "compileall", "-q", target])


def _install_files(system: Path) -> None:
    shutil.copy(FILES / "kvmhost-init.sh", system / "usr/sbin/kvmhost-init")
    shutil.copy(FILES / "crosvm.py", system / "usr/local/bin/crosvm")
    for script in ("usr/sbin/kvmhost-init", "usr/local/bin/crosvm"):
        (system / script).chmod(0o755)
    package = system / "usr/lib/kvmhost/tests/kvmhost"
    package.mkdir(parents=True)
    shutil.copy(AGENT[0], package.parent)
    (package / "__init__.py").touch()
    for module in AGENT[1:]:
        shutil.copy(module, package)
    for folder in ("project", "out", "guests", "scratch", "home/tester"):
        (system / folder).mkdir(parents=True, exist_ok=True)
    shutil.chown(system / "home/tester", TESTER_UID, TESTER_UID)
    groups = (system / "etc/group").read_text()
    with (system / "etc/group").open("a") as file:
        if "\nkvm:" in groups:
            raise BuildError("the Debian tree has a group kvm of its own")
        file.write(f"kvm:x:{KVM_GID}:tester\ntester:x:{TESTER_UID}:\n")
    with (system / "etc/passwd").open("a") as file:
        file.write(f"tester:x:{TESTER_UID}:{TESTER_UID}::/home/tester:/bin/bash\n")


def _build_guests(target: Path, guests: dict[str, Path]) -> None:
    disk = target / "tree"
    disk.mkdir()
    for name, folder in guests.items():
        if name == "root":
            for image in folder.iterdir():
                run("copy", ["cp", "--sparse=always", image, disk])
        else:
            shutil.copytree(folder, disk / name)
    size_mib = int(run("size", ["du", "-sm", disk]).split()[0]) * 21 // 20 + 16
    root.ext4(target / "guests.ext4", disk, size_mib, *PLAIN)
    shutil.rmtree(disk)
