# SPDX-License-Identifier: BSD-3-Clause
"""Which PCI slots the devices of a configuration get, and the windows of PCI segments.

Slots that the configuration names are given first. Then every other device gets the lowest one that
is free in its segment, in the order of ``DEVICE_KEYS``.
"""

from __future__ import annotations

from crosvm_py.config import MAX_PCI_SEGMENTS, MIN_PCI_SHARE
from crosvm_py.vm_config.machine_rules import segments
from crosvm_py.vm_config.pci_rules import devices_of
from crosvm_py.vm_config.problem import FAILED, when
from devices.pci.address import SEGMENT_SLOTS, slot_number
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.field_types import PciDevice
    from crosvm_py.vm_config.problem import Problem
    from crosvm_py.vm_config.schema import VmConfig

# What the vmm calls the devices of these keys; those of lists have a number behind it.
_NAMES: Final = {
    "console": "console",
    "disks": "block",
    "net": "net",
    "rng": "rng",
    "vsock": "vsock",
    "balloon": "balloon",
}


def pci_weights(config: VmConfig) -> tuple[int, ...]:
    """Return the share of each PCI segment in the addresses below 4 GiB."""
    weights = [1] * segments(config)
    for each in config.pci_segments or ():
        if each.pci_segment < len(weights):
            weights[each.pci_segment] = each.mmio32_aperture_weight
    return tuple(weights)


def device_slots(config: VmConfig) -> tuple[tuple[str, int], ...]:
    """Return the slot of each device, by the name that the vmm has for it.

    Devices for which there is no slot are left out.
    """
    return tuple(
        (name, slot) for _place, name, slot in _given_slots(config) if slot is not None and name
    )


def slot_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what is wrong with the number of segments, their windows and their slots."""
    count = segments(config)
    text = f"{count} PCI segments are more than {MAX_PCI_SEGMENTS}"
    yield from when(count > MAX_PCI_SEGMENTS, "platform.num_pci_segments", text, status=FAILED)
    for index, each in enumerate(config.pci_segments or ()):
        wrong = each.mmio64_aperture_weight != 1
        place = f"pci_segments[{index}].mmio64_aperture_weight"
        reason = "is not supported by crosvm-py: devices have their addresses below 4 GiB"
        yield from when(wrong, place, reason, status=FAILED)
    # A client may ask for 65,535 of them: no more are looked at than there can be.
    weights = pci_weights(config)[:MAX_PCI_SEGMENTS]
    total = sum(weights)
    for number, weight in enumerate(weights):
        few = weight * MIN_PCI_SHARE < total
        text = f"segment {number} has less than 1/{MIN_PCI_SHARE} of all weights"
        yield from when(few, "pci_segments", text, status=FAILED)
    for place, _name, slot in _given_slots(config):
        yield from when(slot is None, place, "no PCI slot is left in its segment", status=FAILED)


def _given_slots(config: VmConfig) -> Iterator[tuple[str, str, int | None]]:
    """Yield key, name and slot of each device; the name is "" if the vmm has no such device."""
    found = [
        (place, _name(place), device)
        for place, device in devices_of(config)
        if place != "console" or config.console.mode != "Off"
    ]
    used = {
        slot_number(device.pci_segment, device.pci_device_id)
        for _place, _name, device in found
        if device.pci_device_id is not None
    }
    for place, name, device in found:
        slot = _slot(device, used)
        if slot is not None:
            used.add(slot)
        yield place, name, slot


def _slot(device: PciDevice, used: set[int]) -> int | None:
    if device.pci_device_id is not None:
        return slot_number(device.pci_segment, device.pci_device_id)
    first = 1 if device.pci_segment == 0 else 0  # behind the host bridge
    slots = (slot_number(device.pci_segment, at) for at in range(first, SEGMENT_SLOTS))
    return next((slot for slot in slots if slot not in used), None)


def _name(place: str) -> str:
    key, bracket, rest = place.partition("[")
    name = _NAMES.get(key, "")
    return f"{name}:{rest.rstrip(']')}" if name and bracket else name
