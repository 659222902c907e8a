# SPDX-License-Identifier: BSD-3-Clause
"""Rules for what all devices have together: names, slots, paths."""

from __future__ import annotations

from crosvm_py.vm_config.field_types import PciDevice
from crosvm_py.vm_config.machine_rules import segments
from crosvm_py.vm_config.problem import CONFLICT, FAILED, Problem, when
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.schema import VmConfig

SLOTS: Final = 32
RESERVED_PREFIX: Final = "__"

# In the order in which they get their slots. Each key is a device, or a list of devices.
DEVICE_KEYS: Final = (
    *("console", "disks", "net", "rng", "generic_vhost_user", "fs", "pmem", "vsock"),
    *("balloon", "vdpa", "rtc", "devices", "user_devices"),
)


def devices_of(config: VmConfig) -> Iterator[tuple[str, PciDevice]]:
    """Return every PCI device that the configuration names, with its key."""
    for key in DEVICE_KEYS:
        found = getattr(config, key)
        if isinstance(found, PciDevice):
            yield key, found
        else:
            yield from ((f"{key}[{index}]", each) for index, each in enumerate(found or ()))


def pci_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what is wrong between devices."""
    ids: dict[str, str] = {}
    slots: set[tuple[int, int]] = set()
    count = segments(config)
    behind = frozenset((config.platform and config.platform.iommu_segments) or ())
    for place, device in devices_of(config):
        yield from id_problems(place, device.id)
        if device.id is not None:
            if device.id in ids:
                text = f"{device.id!r:.40} is the name of {ids[device.id]}, too"
                yield Problem(f"{place}.id", text, CONFLICT)
            ids[device.id] = place
        yield from slot_problems(place, device)
        slot = device.pci_segment, device.pci_device_id
        if device.pci_device_id is not None:
            if slot in slots:
                yield used_slot(place, device.pci_device_id)
            slots.add((device.pci_segment, device.pci_device_id))
        yield from _segment(place, device, count, behind)
    yield from _same_path(config, "disks")
    yield from _same_path(config, "devices")


def id_problems(place: str, name: str | None) -> Iterator[Problem]:
    """Return what is wrong with the name that a device is to have."""
    if name is None:
        return
    yield from when(not name, f"{place}.id", "it is empty")
    reserved = name.startswith(RESERVED_PREFIX)
    yield from when(reserved, f"{place}.id", f"{name!r:.40} begins with {RESERVED_PREFIX}")


def slot_problems(place: str, device: PciDevice) -> Iterator[Problem]:
    """Return what is wrong with the slot that a device is to have. The texts are the API's."""
    slot = device.pci_device_id
    if slot is None:
        return
    text = f"Given PCI device ID ({slot}) is out of the supported range of 0..{SLOTS}"
    yield from when(slot >= SLOTS, f"{place}.pci_device_id", text)
    reserved = slot == 0 and device.pci_segment == 0
    text = f"Given PCI device ID ({slot}) is reserved"
    yield from when(reserved, f"{place}.pci_device_id", text)


def used_slot(place: str, slot: int) -> Problem:
    """Return the problem of a slot that another device has. The text is the API's."""
    text = f"Valid PCI device identifier but already used: {slot}"
    return Problem(f"{place}.pci_device_id", text, FAILED)


def _segment(
    place: str, device: PciDevice, count: int, behind: frozenset[int]
) -> Iterator[Problem]:
    number = device.pci_segment
    text = f"there is no segment {number}: num_pci_segments is {count}"
    yield from when(number >= count, f"{place}.pci_segment", text)
    text = f"segment {number} is behind the virtual IOMMU, which this device has to be, too"
    yield from when(number in behind and not device.iommu, f"{place}.iommu", text)


def _same_path(config: VmConfig, key: str) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for index, device in enumerate(getattr(config, key) or ()):
        place, path = f"{key}[{index}]", device.path
        if path is None:
            continue
        if path in seen:
            yield Problem(f"{place}.path", f"{path!r:.80} is that of {seen[path]}, too", CONFLICT)
        seen[path] = place
