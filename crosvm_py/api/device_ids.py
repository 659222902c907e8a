# SPDX-License-Identifier: BSD-3-Clause
"""The ids of devices in the API, and the names that the vmm has for the same devices.

Cloud Hypervisor numbers the devices without an id of their own from one counter for all kinds, in
the order in which it makes them.
"""

from __future__ import annotations

import msgspec

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.vm_config.devices import DiskConfig, NetConfig
    from crosvm_py.vm_config.schema import VmConfig

# Devices that no client adds or removes. All others have a name that is an id, once they are there.
_LONE: Final = frozenset({"rng", "balloon", "console"})


def with_ids(config: VmConfig, taken: Iterable[str] = ()) -> VmConfig:
    """Return the configuration in which every disk, card and vsock has an id.

    New ids are none of those ``taken``.
    """
    used = {item.id for item in (*(config.disks or ()), *(config.net or ())) if item.id}
    used |= {config.vsock.id} if config.vsock is not None and config.vsock.id else set()
    used |= set(taken)
    count = 0

    def new_id(prefix: str) -> str:
        nonlocal count
        while True:
            made = f"_{prefix}{count}"
            count += 1
            if made not in used:
                return made

    def named(item: DiskConfig | NetConfig, prefix: str) -> DiskConfig | NetConfig:
        return item if item.id else msgspec.structs.replace(item, id=new_id(prefix))

    changes: dict[str, object] = {}
    if config.disks is not None:
        changes["disks"] = tuple(named(disk, "disk") for disk in config.disks)
    if config.net is not None:
        changes["net"] = tuple(named(card, "net") for card in config.net)
    if config.vsock is not None and not config.vsock.id:
        changes["vsock"] = msgspec.structs.replace(config.vsock, id=new_id("vsock"))
    return msgspec.structs.replace(config, **changes)


def ids_by_name(config: VmConfig) -> dict[str, str]:
    """Return the id of each device of a configuration ``with_ids``, by the name the vmm has."""
    disks = {f"block:{at}": disk.id for at, disk in enumerate(config.disks or ())}
    cards = {f"net:{at}": card.id for at, card in enumerate(config.net or ())}
    vsock = {} if config.vsock is None else {"vsock": config.vsock.id}
    return {name: found for name, found in {**disks, **cards, **vsock}.items() if found}


def id_of(ids: dict[str, str], name: str) -> str:
    """Return the id of the device that the vmm calls ``name``."""
    known = ids.get(name)
    return known or (f"__{name.partition(':')[0]}" if name in _LONE else name)
