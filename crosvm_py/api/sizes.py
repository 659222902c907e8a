# SPDX-License-Identifier: BSD-3-Clause
"""Calls that change sizes: of the VM, its balloon and its disks."""

from __future__ import annotations

import msgspec

from crosvm_py.api.errors import NO_CONTENT, ApiError
from crosvm_py.requests.devices import MAX_DISK_BYTES, ResizeNamedDisk
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import HALTED
from crosvm_py.vm_config.machine_rules import ram_bytes
from crosvm_py.vm_config.requests import VmResize, VmResizeDisk, VmResizeZone
from devices.virtio.commands import DiskSize
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm
    from crosvm_py.vm_config.machine import MemoryConfig
    from crosvm_py.vm_config.schema import VmConfig

_SECTOR_BYTES: Final = 512


def resize(vm: ApiVm, call: Call) -> Steps:
    """Change the number of vCPUs and the sizes of memory and balloon, before the boot or later.

    A VM that was shut down has them at its next boot.
    """
    wanted = call.taken(VmResize)
    changed = _resized(vm.known(), wanted)
    facts = yield from vm.facts()
    held = vm.held
    if facts.memory_bytes or facts.state == HALTED:
        request = Resize(wanted.desired_vcpus, wanted.desired_ram, wanted.desired_balloon)
        resized = yield from vm.demand(request, Resized)
        if resized.is_busy:
            raise ApiError(429, "the guest has not yet let go of vCPUs")
        held = None if held is None else _resized(held, wanted)
    vm.keep(changed, held=held)
    return NO_CONTENT


def _resized(config: VmConfig, wanted: VmResize) -> VmConfig:
    """Return the configuration with other sizes.

    Raises:
        ApiError: one of them is impossible.
    """
    cpus, memory, balloon = config.cpus, config.memory, config.balloon
    if wanted.desired_vcpus is not None:
        if not 0 < wanted.desired_vcpus <= cpus.max_vcpus:
            raise ApiError(500, f"{wanted.desired_vcpus} vCPUs are not 1 to {cpus.max_vcpus}")
        cpus = msgspec.structs.replace(cpus, boot_vcpus=wanted.desired_vcpus)
    if wanted.desired_ram is not None:
        if memory.zones:
            raise ApiError(500, "the memory has zones, which keep their sizes")
        memory = _with_size(memory, wanted.desired_ram)
    if wanted.desired_balloon is not None:
        if balloon is None:
            raise ApiError(500, "the VM has no balloon")
        if wanted.desired_balloon > ram_bytes(memory):
            raise ApiError(500, "the balloon would be larger than the memory")
        balloon = msgspec.structs.replace(balloon, size=wanted.desired_balloon)
    return msgspec.structs.replace(config, cpus=cpus, memory=memory, balloon=balloon)


def _with_size(memory: MemoryConfig, size: int) -> MemoryConfig:
    """Return the memory with another size; virtio-mem has what goes beyond that of the boot.

    Raises:
        ApiError: it is below that of the boot.
    """
    if memory.hotplug_method == "Acpi" or not memory.hotplug_size:
        return msgspec.structs.replace(memory, size=size)
    if size < memory.size:
        raise ApiError(500, f"{size} bytes are less than the memory of the boot, {memory.size}")
    return msgspec.structs.replace(memory, hotplugged_size=size - memory.size or None)


def resize_disk(vm: ApiVm, call: Call) -> Steps:
    """Change the size of a disk, which the guest sees at once."""
    wanted = call.taken(VmResizeDisk)
    vm.known()
    yield from vm.booted()
    disks = {disk.id for disk in vm.known().disks or ()}
    names = [
        name for name, known in vm.names.items() if known in disks and wanted.id in (known, name)
    ]
    if not names:
        raise ApiError(404, f"no disk has the id {wanted.id}")
    if wanted.desired_size % _SECTOR_BYTES or not 0 < wanted.desired_size <= MAX_DISK_BYTES:
        raise ApiError(500, f"{wanted.desired_size} is not a number of whole sectors of 512 bytes")
    yield from vm.demand(ResizeNamedDisk(names[0], wanted.desired_size), DiskSize)
    return NO_CONTENT


def resize_zone(vm: ApiVm, call: Call) -> Steps:
    """Refuse: memory zones keep their sizes."""
    wanted = call.taken(VmResizeZone)
    zones = {zone.id for zone in vm.known().memory.zones or ()}
    yield from ()
    if wanted.id in zones:
        raise ApiError(500, f"the memory zone {wanted.id} keeps its size")
    raise ApiError(500, f"no memory zone has the id {wanted.id}")
