# SPDX-License-Identifier: BSD-3-Clause
"""Calls that create a VM, boot it, and take it away, where the vmm waits for one."""

from __future__ import annotations

from crosvm_py.api.device_ids import ids_by_name, with_ids
from crosvm_py.api.errors import NO_CONTENT, ApiError
from crosvm_py.requests.creation import Booted, BootVm, EndVm, ForgetVm
from crosvm_py.requests.protocol import Done
from crosvm_py.requests.vm import HALTED
from crosvm_py.vm_config.schema import VmConfig
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm

EDITED: Final = (
    "changed since vm.shutdown, after which a process can open nothing: change it back, or start"
    " a new process (vm.resize is possible)"
)


def create(vm: ApiVm, call: Call) -> Steps:
    """Take a configuration, which is checked when the VM boots."""
    if vm.config is not None:
        raise ApiError(500, "VM is already created")
    config = call.taken(VmConfig)
    yield from vm.confine(config)
    vm.keep(config)
    return NO_CONTENT


def boot(vm: ApiVm, _call: Call) -> Steps:
    """Start the VM. When that fails the configuration stays, and a client may try again."""
    config = vm.known()
    facts = yield from vm.facts()
    if facts.state == HALTED:  # the devices that are there have their names
        _check_held(config, vm.held)
    else:
        config = with_ids(config)
        vm.keep(config, ids_by_name(config))
    vm.is_booting = True
    try:
        booted = yield from vm.demand(BootVm(), Booted)
    finally:
        vm.is_booting = False
    if booted.status:
        raise ApiError(booted.status, *booted.reasons)
    return NO_CONTENT


def _check_held(config: VmConfig, held: VmConfig | None) -> None:
    """Refuse to boot a VM again with another configuration than it has.

    Raises:
        ApiError: clients have changed it since vm.shutdown.
    """
    keys = [key for key in config.__struct_fields__ if getattr(config, key) != getattr(held, key)]
    if keys:
        raise ApiError(500, f"{', '.join(keys)}: {EDITED}")


def shut_down(vm: ApiVm, _call: Call) -> Steps:
    """End the VM; its configuration stays."""
    yield from vm.booted()
    yield from vm.demand(EndVm(), Done)
    return NO_CONTENT


def delete(vm: ApiVm, _call: Call) -> Steps:
    """End the VM, if it runs, and forget its configuration."""
    if vm.config is None:
        return NO_CONTENT
    yield from vm.demand(EndVm(), Done)
    yield from vm.demand(ForgetVm(), Done)
    vm.keep(None)
    return NO_CONTENT
