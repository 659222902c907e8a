# SPDX-License-Identifier: BSD-3-Clause
"""Calls that add devices to a configuration, and remove them from it.

While the VM runs, it gets them, or loses them. While it is shut down, ``held`` stays what it has.
"""

from __future__ import annotations

import msgspec

from crosvm_py.api.device_ids import with_ids
from crosvm_py.api.edits import appended, checked, removal
from crosvm_py.api.errors import NO_CONTENT, ApiError
from crosvm_py.api.hotplug import plug, unplug
from crosvm_py.requests.creation import MAX_FDS, DropFds, KeepFds, KeptFds
from crosvm_py.requests.protocol import Done
from crosvm_py.vm_config.devices import DiskConfig, NetConfig, VsockConfig
from crosvm_py.vm_config.requests import VmRemoveDevice
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm


def add_disk(vm: ApiVm, call: Call) -> Steps:
    """Add a disk."""
    disk = call.taken(DiskConfig)
    config = vm.known()
    facts = yield from vm.facts()
    if facts.memory_bytes:
        return (yield from plug(vm, "disks", disk))
    vm.keep(with_ids(checked(appended(config, "disks", disk))), held=vm.held)
    return NO_CONTENT


def add_net(vm: ApiVm, call: Call) -> Steps:
    """Add a network card; the descriptors that came with the call are its TAP."""
    card, count = call.taken(NetConfig), len(call.fds)
    if count > MAX_FDS:
        raise ApiError(500, f"{count} descriptors, where {MAX_FDS} is the most")
    config = vm.known()
    facts = yield from vm.facts()
    if count:  # checked with any numbers, before anybody keeps descriptors for it
        card = msgspec.structs.replace(card, fds=tuple(range(3, 3 + count)))
    if facts.memory_bytes:
        return (yield from plug(vm, "net", card, call.fds))
    checked(appended(config, "net", card))
    if count:
        kept = yield from vm.demand(KeepFds(), KeptFds, call.fds)
        card = msgspec.structs.replace(card, fds=kept.numbers)
    vm.keep(with_ids(appended(config, "net", card)), held=vm.held)
    return NO_CONTENT


def add_vsock(vm: ApiVm, call: Call) -> Steps:
    """Add the vsock device."""
    vsock, config = call.taken(VsockConfig), vm.known()
    facts = yield from vm.facts()
    if config.vsock is not None:
        raise ApiError(500, "the VM has a vsock device already")
    if facts.memory_bytes:
        return (yield from plug(vm, "vsock", vsock))
    vm.keep(with_ids(checked(appended(config, "vsock", vsock))), held=vm.held)
    return NO_CONTENT


def remove(vm: ApiVm, call: Call) -> Steps:
    """Remove a device."""
    wanted, config = call.taken(VmRemoveDevice).id, vm.known()
    facts = yield from vm.facts()
    if facts.memory_bytes:
        return (yield from unplug(vm, wanted))
    changes = removal(config, wanted)
    if not changes:
        raise ApiError(404, f"no device has the id {wanted}")
    fds = tuple(fd for card in config.net or () if card.id == wanted for fd in card.fds or ())
    if fds:
        yield from vm.demand(DropFds(fds), Done)
    vm.keep(msgspec.structs.replace(config, **changes), held=vm.held)
    return NO_CONTENT
