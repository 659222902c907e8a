# SPDX-License-Identifier: BSD-3-Clause
"""What of a configuration crosvm-py does not have, and what it does in its own way.

A key that would change what the guest sees, or whom it is protected from, is an error. A hint that
makes a VM faster or slower is ignored, and named.
"""

from __future__ import annotations

from msgspec import structs

from crosvm_py.config import MAX_CPUS
from crosvm_py.vm_config.problem import FAILED, Problem
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.schema import VmConfig

# Keys whose value is refused unless it is absent or the default. A star stands for each item.
_REFUSED: Final = {
    "payload.firmware": "it boots kernels itself",
    "cpus.kvm_hyperv": "the guest sees no interfaces of Hyper-V",
    "cpus.features.amx": "processors have no features on request",
    "memory.zones.*.file": "memory is nowhere but in memory",
    "memory.zones.*.hugepages": "memory.hugepages is for all zones",
    "memory.zones.*.hotplug_size": "memory.hotplug_size is for all of memory",
    "memory.zones.*.hotplugged_size": "memory.hotplugged_size is for all of memory",
    "memory.zones.*.prefault": "memory.prefault is for all zones",
    "rate_limit_groups": "each device has limits of its own",
    "disks.*.iommu": "there is no virtual IOMMU",
    "disks.*.vhost_user": "each device is a process of its own",
    "disks.*.rate_limit_group": "each device has limits of its own",
    "net.*.iommu": "there is no virtual IOMMU",
    "net.*.vhost_user": "each device is a process of its own",
    "net.*.host_mac": "the address of a TAP is the host's affair",
    "fs": "there is no shared directory",
    "generic_vhost_user": "each device is a process of its own",
    "pmem": "there is no persistent memory",
    "devices": "there is no VFIO",
    "user_devices": "there is no vfio-user",
    "vdpa": "there is no vDPA",
    "tpm": "there is no TPM",
    "rtc": "the clock is that of the machine (CMOS)",
    "iommu": "there is no virtual IOMMU",
    "numa.*.device_id": "a device is as near as its PCI segment",
    "platform.iommu_segments": "there is no virtual IOMMU",
}
_IMAGES: Final = ("Raw", "Unknown")
_SOURCES: Final = ("/dev/urandom", "/dev/random")

# Keys that are ignored, with what happens instead.
_IGNORED: Final = {
    "memory.mergeable": "pages are not merged",
    "memory.reserve": "memory is taken when it is used",
    "memory.zones.*.mergeable": "pages are not merged",
    "memory.zones.*.reserve": "memory is taken when it is used",
    "disks.*.queue_affinity": "the host decides where queues are served",
    "net.*.offload_tso": "a card offloads what its TAP can",
    "net.*.offload_ufo": "a card offloads what its TAP can",
    "net.*.offload_csum": "a card offloads what its TAP can",
}


def unsupported(config: VmConfig) -> list[Problem]:
    """Return what of the configuration does not exist here."""
    found = [
        _refusal(place, reason)
        for key, reason in _REFUSED.items()
        for place in _given(config, None, "", key.split("."))
    ]
    for index, disk in enumerate(config.disks or ()):
        if disk.image_type not in _IMAGES:
            found.append(_refusal(f"disks[{index}].image_type", "images are raw"))
    if config.rng.src not in _SOURCES:
        found.append(_refusal("rng.src", "entropy comes from getrandom(2)"))
    memory = config.memory
    if memory.hotplugged_size and memory.hotplug_method == "Acpi":
        found.append(_refusal("memory.hotplugged_size", "there are no modules at the start"))
    if memory.hugepages and memory.hotplug_size:
        found.append(_refusal("memory.hotplug_size", "memory of hugepages has one size"))
    if config.serial.mode == "Socket":
        found.append(_refusal("serial.mode Socket", "a port makes no socket that it listens at"))
    return found


def ignored(config: VmConfig) -> list[str]:
    """Return a line for each key that has a value and no effect."""
    found = [
        f"{place} has no effect: {instead}"
        for key, instead in _IGNORED.items()
        for place in _given(config, None, "", key.split("."))
    ]
    if config.cpus.max_vcpus > MAX_CPUS:
        found.append(f"cpus.max_vcpus has no effect beyond {MAX_CPUS}: there are no more vCPUs")
        if config.cpus.topology is not None:
            found.append("cpus.topology has no effect: each vCPU is a core")
    return found


def remarks(place: str) -> Iterator[str]:
    """Return what people are to know of a key before they use it: that it is refused or ignored.

    ``place`` is the key, with a star for each item of an array. If only something inside of it is
    refused or ignored, that is named; but inside of an array, only the place itself counts.
    """
    for known, effect in ((_REFUSED, "refused"), (_IGNORED, "no effect")):
        for key, reason in known.items():
            inner = key.removeprefix(f"{place}.")
            if key == place:
                yield f"{effect}: {reason}"
            elif inner != key and place.count(".") and not inner.startswith("*"):
                yield f"{inner}: {effect}: {reason}"


# The defaults of each class that was looked at.
_defaults: Final[dict[type, dict[str, object]]] = {}


def _refusal(place: str, reason: str) -> Problem:
    return Problem(place, f"is not supported by crosvm-py: {reason}", FAILED)


def _given(value: object, default: object, place: str, keys: list[str]) -> Iterator[str]:
    """Return the places at ``keys`` in ``value`` that differ from ``default``."""
    if not keys:
        nothing = default is None and value in (0, "")
        if not nothing and value not in (None, (), default):
            yield place
    elif keys[0] == "*":
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            yield from _given(item, None, f"{place}[{index}]", keys[1:])
    elif value is not None:
        inner = f"{place}.{keys[0]}" if place else keys[0]
        yield from _given(getattr(value, keys[0]), _default(value, keys[0]), inner, keys[1:])


def _default(record: object, key: str) -> object:
    kind = type(record)
    if kind not in _defaults:  # it takes milliseconds, and is asked for each key
        fields = structs.fields(kind)  # type: ignore[arg-type]  # of a Struct
        _defaults[kind] = {field.name: field.default for field in fields}
    return _defaults[kind][key]
