# SPDX-License-Identifier: BSD-3-Clause
"""Make a guest's folder: all of it, or nothing.

The folder is filled under a temporary name and renamed when it is complete. If a run is
interrupted, the next one removes the temporary folder; it knows by a lock on the folder whether
another process is still filling it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile

from crosvm_py.guest import modules as kernel_modules
from crosvm_py.guest.apt import KEYRING, Apt, Source
from crosvm_py.guest.deb import read_files
from crosvm_py.guest.description import NAME, GuestDescription, write_description
from crosvm_py.guest.initrd import make_initrd
from crosvm_py.guest.root import debian_root, minimal_root
from crosvm_py.guest.tools import Progress, need
from sys_util.errors import ConfigError, HostError
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KINDS: Final = ("minimal", "debian")
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE: Final = "busybox-static"
BUSYBOX_FILES: Final = frozenset({"bin/busybox", "usr/bin/busybox"})
PARTIAL: Final = ".crosvm-guest-"

_PROGRAMS: Final = (
    *(("apt-get", "apt"), ("apt-cache", "apt"), ("apt-config", "apt"), ("dpkg-deb", "dpkg")),
    ("mksquashfs", "squashfs-tools"),
)
_FILES: Final = ((KEYRING, "debian-archive-keyring"),)
_STEPS: Final = 5


@fact
class GuestOrder:
    """What to make: one of ``KINDS``; ``debian`` may have more ``packages``."""

    kind: str
    source: Source
    packages: tuple[str, ...] = ()


def check_host(kind: str) -> None:
    """Check that the programs for making this kind of guest are installed.

    Raises:
        ConfigError: some are missing; it names all of them.
    """
    programs = list(_PROGRAMS)
    if kind == "debian":
        programs.append(("mmdebstrap", "mmdebstrap"))
        if os.geteuid():
            programs.append(("newuidmap", "uidmap"))
    need(programs, _FILES)


def make_guest(order: GuestOrder, target: str, tell: Callable[[str], None]) -> None:
    """Make the folder ``target``, which must not exist yet; ``tell`` gets lines of progress.

    Raises:
        ConfigError: it exists, or the host lacks programs.
        HostError: a step failed; no files are left.
    """
    target = os.path.abspath(target)
    if os.path.lexists(target):
        raise ConfigError(f"guest make: {target}: is there already")
    check_host(order.kind)
    progress = Progress(tell, _STEPS)
    complete(target, lambda folder: _fill(order, folder, progress))


def complete(target: str, fill: Callable[[str], None]) -> None:
    """Make a temporary folder, call ``fill`` with it, and rename it to ``target``.

    Raises:
        HostError: it cannot be made there.
    """
    parent = os.path.dirname(target)
    try:
        _remove_left(parent)
        folder = tempfile.mkdtemp(prefix=PARTIAL, dir=parent)
    except OSError as error:
        raise HostError("guest make:", parent) from error
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fill(folder)
        os.chmod(folder, 0o755)
        os.rename(folder, target)
    except OSError as error:
        raise HostError("guest make:", target) from error
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(parent: str) -> None:
    """Remove the temporary folders of interrupted runs in ``parent``."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if not name.startswith(PARTIAL) or os.path.islink(path):
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def _fill(order: GuestOrder, folder: str, progress: Progress) -> None:
    progress.step(f"packages of Debian {order.source.suite}")
    apt = Apt(order.source, progress)
    try:
        apt.refresh()
        apt.check(order.packages)
        kernel, busybox = apt.download([apt.resolve(KERNEL_PACKAGE), BUSYBOX_PACKAGE])
        progress.step("the kernel and its modules")
        box = _busybox(busybox)
        loaded = read_kernel(kernel, os.path.join(folder, "vmlinuz"))
        progress.step(f"the initrd, with {len(loaded)} modules")
        _write(folder, "initrd.img", make_initrd(box, loaded))
        root = os.path.join(folder, "root.squashfs")
        progress.step(f"the root image: {order.kind}")
        if order.kind == "debian":
            debian_root(root, order.source, order.packages, apt, progress)
        else:
            minimal_root(root, box)
    finally:
        apt.close()
    description = GuestDescription("vmlinuz", "initrd.img", "root.squashfs", params="quiet")
    _write(folder, NAME, write_description(description))
    progress.step("done")


def _busybox(package: str) -> bytes:
    for _, data in read_files(package, BUSYBOX_FILES.__contains__):
        return data
    raise HostError("guest make:", f"{package}: no busybox in it")


def read_kernel(
    package: str, target: str, names: Sequence[str] = kernel_modules.NAMES
) -> list[tuple[str, bytes]]:
    """Write the kernel of a package to ``target``; return its modules in the order of loading.

    Raises:
        HostError: the package is damaged, or has no kernel.
    """

    def wanted(name: str) -> bool:
        return name.startswith("boot/vmlinuz-") or kernel_modules.module_name(name) is not None

    kernels = 0
    found: dict[str, bytes] = {}
    for name, data in read_files(package, wanted):
        module = kernel_modules.module_name(name)
        if module is not None:
            found[module] = kernel_modules.unpacked(name, data)
        else:
            kernels += 1
            with open(target, "wb") as file:
                file.write(data)
    if kernels != 1:
        raise HostError("guest make:", f"{package}: {kernels} kernels in it, not one")
    order = kernel_modules.in_order(names, found)
    return [(name, found[name]) for name in order]


def _write(folder: str, name: str, data: bytes) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)
