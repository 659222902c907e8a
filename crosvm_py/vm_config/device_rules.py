# SPDX-License-Identifier: BSD-3-Clause
"""Rules for each kind of device."""

from __future__ import annotations

from crosvm_py.vm_config.network_rules import card_problems
from crosvm_py.vm_config.problem import is_power_of_two, when
from devices.virtio.vsock.common import RESERVED_CIDS
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.devices import (
        ConsoleConfig,
        DebugConsoleConfig,
        DeviceConfig,
        DiskConfig,
        FsConfig,
        SerialConfig,
    )
    from crosvm_py.vm_config.problem import Problem
    from crosvm_py.vm_config.schema import VmConfig

MAX_QUEUE_SIZE: Final = 32768  # virtio 1.3 §2.7
MAX_SERIAL_BYTES: Final = 20  # virtio 1.3 §5.2.6
MAX_TAG_BYTES: Final = 36  # virtio 1.3 §5.11.4
MIN_BLOCK_QUEUE_SIZE: Final = 4  # a request has at least header, data and status
_MAX_BAR: Final = 5


def device_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what is wrong with each device by itself."""
    for index, disk in enumerate(config.disks or ()):
        yield from _disk(f"disks[{index}]", disk, config)
    for index, card in enumerate(config.net or ()):
        place = f"net[{index}]"
        yield from card_problems(place, card, config.cpus.boot_vcpus)
        if card.vhost_user:
            yield from vhost_user(place, config, "vhost_socket", card.vhost_socket)
            yield from no_iommu(place, card.iommu)
            limited = card.rate_limiter_config is not None
            yield from when(limited, f"{place}.rate_limiter_config", "vhost-user has no limits")
    for index, share in enumerate(config.fs or ()):
        yield from _fs(f"fs[{index}]", share, config)
    for key in ("generic_vhost_user", "user_devices"):
        for index, device in enumerate(getattr(config, key) or ()):
            yield from vhost_user(f"{key}[{index}]", config, "socket", device.socket)
            yield from no_iommu(f"{key}[{index}]", device.iommu)
    for index, passed in enumerate(config.devices or ()):
        yield from _vfio(f"devices[{index}]", passed, config)
    yield from _consoles(config)
    cid = None if config.vsock is None else config.vsock.cid
    yield from when(cid in RESERVED_CIDS, "vsock.cid", f"{cid} is reserved")


def queue_problems(place: str, size: int, least: int = 1) -> Iterator[Problem]:
    """Return what is wrong with the number of entries of a queue."""
    wrong = not is_power_of_two(size) or not least <= size <= MAX_QUEUE_SIZE
    text = f"{size} is not a power of two in {least}..{MAX_QUEUE_SIZE}"
    yield from when(wrong, f"{place}.queue_size", text)


def vhost_user(place: str, config: VmConfig, key: str, socket: str | None) -> Iterator[Problem]:
    """Return what is missing for a device that another program serves."""
    yield from when(not socket, f"{place}.{key}", "the socket of the other program is missing")
    memory = config.memory
    shared = memory.shared or memory.hugepages
    if memory.zones:
        shared = all(zone.shared or zone.hugepages for zone in memory.zones)
    yield from when(not shared, place, "it needs memory that is shared: memory.shared or hugepages")


def no_iommu(place: str, iommu: bool) -> Iterator[Problem]:
    """Refuse a virtual IOMMU for a device that cannot have one."""
    yield from when(iommu, f"{place}.iommu", "this device cannot be behind the virtual IOMMU")


def _disk(place: str, disk: DiskConfig, config: VmConfig) -> Iterator[Problem]:
    has_path, has_socket = disk.path is not None, disk.vhost_socket is not None
    yield from when(has_path and has_socket, place, "path and vhost_socket exclude each other")
    missing = not has_path and not has_socket and not disk.vhost_user
    yield from when(missing, f"{place}.path", "is missing")
    unused = has_socket and not disk.vhost_user
    yield from when(unused, f"{place}.vhost_socket", "it needs vhost_user")
    if disk.vhost_user:
        yield from vhost_user(place, config, "vhost_socket", disk.vhost_socket)
        yield from no_iommu(place, disk.iommu)
        limited = disk.rate_limiter_config is not None or disk.rate_limit_group is not None
        yield from when(limited, f"{place}.rate_limiter_config", "vhost-user has no limits")
    yield from _queues(place, disk.num_queues, config.cpus.boot_vcpus)
    yield from queue_problems(place, disk.queue_size, MIN_BLOCK_QUEUE_SIZE)
    serial = disk.serial or ""
    too_long = len(serial.encode("utf-8", "replace")) > MAX_SERIAL_BYTES
    yield from when(too_long, f"{place}.serial", f"more than {MAX_SERIAL_BYTES} bytes")
    groups = {group.id for group in config.rate_limit_groups or ()}
    unknown = disk.rate_limit_group is not None and disk.rate_limit_group not in groups
    text = f"there is no group {disk.rate_limit_group!r:.40}"
    yield from when(unknown, f"{place}.rate_limit_group", text)


def _queues(place: str, count: int, vcpus: int) -> Iterator[Problem]:
    text = f"{count} is not in 1..{vcpus}, the number of vCPUs"
    yield from when(not 1 <= count <= vcpus, f"{place}.num_queues", text)


def _fs(place: str, share: FsConfig, config: VmConfig) -> Iterator[Problem]:
    yield from vhost_user(place, config, "socket", share.socket)
    yield from no_iommu(place, share.iommu)
    yield from _queues(place, share.num_queues, config.cpus.boot_vcpus)
    yield from queue_problems(place, share.queue_size)
    length = len(share.tag.encode("utf-8", "replace"))
    yield from when(
        not 1 <= length <= MAX_TAG_BYTES, f"{place}.tag", f"{length} bytes are not in 1..36"
    )


def _vfio(place: str, device: DeviceConfig, config: VmConfig) -> Iterator[Problem]:
    platform = config.platform
    if (device.path is None) == (device.fd is None):
        yield from when(True, place, "it needs path or fd, and not both")
    if device.fd is not None:
        lacks = platform is None or platform.iommufd_fd is None
        yield from when(lacks, f"{place}.fd", "it needs platform.iommufd_fd")
    off = platform is not None and not platform.vfio_p2p_dma
    wrong = device.x_nv_gpudirect_clique is not None and off
    yield from when(wrong, f"{place}.x_nv_gpudirect_clique", "it needs platform.vfio_p2p_dma")
    for bar in device.x_exclude_mmap_bars or ():
        yield from when(bar > _MAX_BAR, f"{place}.x_exclude_mmap_bars", f"{bar} is not in 0..5")


def _consoles(config: VmConfig) -> Iterator[Problem]:
    consoles: dict[str, ConsoleConfig | SerialConfig | DebugConsoleConfig] = {
        "serial": config.serial,
        "console": config.console,
        "debug_console": config.debug_console,
    }
    for place, console in consoles.items():
        lacks = console.mode == "File" and not console.file
        yield from when(lacks, f"{place}.file", "mode File needs it")
    serial = config.serial
    lacks = serial.mode == "Socket" and not serial.socket
    yield from when(lacks, "serial.socket", "mode Socket needs it")
    for place in ("console", "debug_console"):
        wrong = consoles[place].mode == "Socket"
        yield from when(wrong, f"{place}.mode", "Socket is for the serial port")
