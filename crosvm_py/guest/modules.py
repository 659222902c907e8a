# SPDX-License-Identifier: BSD-3-Clause
"""Kernel modules and their dependencies, which are read from the modules themselves."""

from __future__ import annotations

import lzma
import re

from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The modules for an initrd: drivers for all our virtio devices, and file systems for the root.
NAMES: Final = (
    *("virtio_pci", "virtio_blk", "squashfs", "overlay", "virtio_net", "virtio_rng"),
    *("virtio_console", "virtio_balloon", "virtio_mem", "vmw_vsock_virtio_transport"),
)

_DEPENDS: Final = re.compile(rb"\0depends=([\w,-]*)\0")
_FILE: Final = re.compile(r"(?:usr/)?lib/modules/[^/]+/kernel/(?:.+/)?([\w-]+)\.ko(\.xz)?")


def module_name(path: str) -> str | None:
    """Return the name of the module in a file with this path, or None if it is no module."""
    found = _FILE.fullmatch(path)
    return found[1].replace("-", "_") if found else None


def unpacked(path: str, data: bytes) -> bytes:
    """Return the content of a module, decompressed if needed."""
    return lzma.decompress(data) if path.endswith(".xz") else data


def depends(module: bytes) -> list[str]:
    """Return the names of the modules that this one depends on, from its ``.modinfo``."""
    found = _DEPENDS.search(module)
    names = found[1].decode("ascii") if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def in_order(wanted: Iterable[str], modules: Mapping[str, bytes]) -> list[str]:
    """Return ``wanted`` modules and all that they depend on, in the order of loading.

    A ``wanted`` module that is not in ``modules`` is left out, since it may be built into the
    kernel.

    Raises:
        HostError: a module depends on one that is not in ``modules``.
    """
    order: list[str] = []
    for name in wanted:
        if name in modules:
            _visit(name, modules, order, ())
    return order


def _visit(
    name: str, modules: Mapping[str, bytes], order: list[str], parents: tuple[str, ...]
) -> None:
    if name in order:
        return
    if name in parents or name not in modules:
        raise HostError("guest make: kernel modules:", f"{parents[-1]} needs {name}, not there")
    for needed in depends(modules[name]):
        _visit(needed, modules, order, (*parents, name))
    order.append(name)
