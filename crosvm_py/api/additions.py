# SPDX-License-Identifier: BSD-3-Clause
"""Calls that add devices to a configuration, and remove them from it, before the VM boots."""

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
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm
    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vm_config.schema import VmConfig

_HOTPLUG: Final = "devices that are added to a running VM are not supported by crosvm-py"


def add_disk(vm: ApiVm, call: Call) -> Steps:
    """Add a disk."""
    disk = call.taken(DiskConfig)
    facts = yield from vm.facts()
    if facts.memory_bytes:
        return (yield from plug(vm, "disks", disk))
    return (yield from _add(vm, lambda config: appended(config, "disks", disk)))


def add_net(vm: ApiVm, call: Call) -> Steps:
    """Add a network card; the descriptors that came with the call are its TAP.

    A VM that runs takes cards on named TAPs alone.
    """
    card, count = call.taken(NetConfig), len(call.fds)
    if count > MAX_FDS:
        raise ApiError(500, f"{count} descriptors, where {MAX_FDS} is the most")
    config = vm.known()
    facts = yield from vm.facts()
    if facts.memory_bytes:
        if count:
            raise ApiError(500, "a card with descriptors can be added before vm.boot alone")
        return (yield from plug(vm, "net", card))
    if count:  # checked with any numbers, before the vmm keeps descriptors for it
        card = msgspec.structs.replace(card, fds=tuple(range(3, 3 + count)))
    checked(appended(config, "net", card))
    if count:
        kept = yield from vm.demand(KeepFds(), KeptFds, call.fds)
        card = msgspec.structs.replace(card, fds=kept.numbers)
    vm.keep(with_ids(appended(config, "net", card)))
    return NO_CONTENT


def add_vsock(vm: ApiVm, call: Call) -> Steps:
    """Add the vsock device."""
    vsock = call.taken(VsockConfig)

    def edit(config: VmConfig) -> VmConfig:
        if config.vsock is not None:
            raise ApiError(500, "the VM has a vsock device already")
        return msgspec.structs.replace(config, vsock=vsock)

    return (yield from _add(vm, edit))


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
    vm.keep(msgspec.structs.replace(config, **changes))
    return NO_CONTENT


def _before_boot(vm: ApiVm) -> Generator[Pending, Response, VmConfig]:
    """Return the configuration of a VM that does not run.

    Raises:
        ApiError: there is none, or it runs.
    """
    config = vm.known()
    facts = yield from vm.facts()
    if facts.memory_bytes:
        raise ApiError(500, _HOTPLUG)
    return config


def _add(vm: ApiVm, edit: Callable[[VmConfig], VmConfig]) -> Steps:
    config = edit((yield from _before_boot(vm)))
    vm.keep(with_ids(checked(config)))
    return NO_CONTENT
