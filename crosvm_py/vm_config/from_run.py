# SPDX-License-Identifier: BSD-3-Clause
"""From the configuration that ``crosvm run`` uses to one of the schema, for vm.info."""

from __future__ import annotations

from msgspec import structs

from crosvm_py.config import VIRTIO_CONSOLE
from crosvm_py.vm_config.devices import (
    BalloonConfig,
    ConsoleConfig,
    DebugConsoleConfig,
    DiskConfig,
    NetConfig,
    RateLimiterConfig,
    SerialConfig,
    TokenBucket,
    VsockConfig,
)
from crosvm_py.vm_config.machine import (
    CpuAffinity,
    CpusConfig,
    CpuTopology,
    LandlockConfig,
    MemoryConfig,
    PayloadConfig,
    PciSegmentConfig,
    PlatformConfig,
)
from crosvm_py.vm_config.numa import node_configs, zone_configs
from crosvm_py.vm_config.schema import VmConfig
from devices.pci.address import SEGMENT_SLOTS
from sys_util import socket
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.config import CpuSpec, NetworkSpec, RunConfig, SerialSpec
    from crosvm_py.vm_config.field_types import ConsoleMode
    from devices.virtio.balloon.device import BalloonSpec
    from devices.virtio.block.spec import BlockSpec
    from devices.virtio.rate_limiter import RateLimits

_MODES: Final[dict[str, ConsoleMode]] = {
    "stdout": "Tty",
    "file": "File",
    "sink": "Null",
    "pty": "Pty",
    "syslog": "Null",
    "unix": "Socket",
    "unix-stream": "Socket",
}
# What our devices have, whatever was asked for.
_QUEUE_SIZE: Final = 256
_MAX_DISK_QUEUES: Final = 4


def vm_config(config: RunConfig) -> VmConfig:
    """Return what a VM of ``crosvm run`` is, as far as the schema can say it.

    A network in user mode has no key for its other end, and ports that send to the system log are
    said to send nowhere.
    """
    balloon, vsock = config.balloon, config.vsock
    scheduling: str = "Off" if config.core_scheduling is False else "Vcpu"
    return VmConfig(
        cpus=structs.replace(
            CpusConfig(boot_vcpus=config.cpus, max_vcpus=config.max_cpus),
            topology=_topology(config.cpu_spec),
            max_phys_bits=config.cpu_spec.address_bits or 46,
            affinity=_affinity(config),
            core_scheduling="Vm" if config.per_vm_core_scheduling else scheduling,
        ),
        memory=MemoryConfig(
            size=0 if config.zones else config.memory_bytes,
            hotplug_size=config.hotplug_bytes or None,
            hotplug_method="VirtioMem" if config.has_virtio_mem else "Acpi",
            hotplugged_size=config.hotplugged_bytes or None,
            hugepages=config.pool_page_bytes > 0,
            hugepage_size=config.pool_page_bytes or None,
            prefault=config.prefault,
            shared=True,
            thp=config.huge_pages,
            zones=zone_configs(config),
        ),
        payload=PayloadConfig(
            kernel=config.kernel,
            cmdline=" ".join(config.params) or None,
            initramfs=config.initrd,
        ),
        disks=tuple(
            structs.replace(_disk(spec, config.cpus), pci_segment=_segment(config, f"block:{at}"))
            for at, spec in enumerate(config.disks)
        )
        or None,
        net=tuple(
            structs.replace(_card(spec), pci_segment=_segment(config, f"net:{at}"))
            for at, spec in enumerate(config.networks)
        )
        or None,
        balloon=None if balloon is None else _balloon(balloon),
        vsock=None if vsock is None else VsockConfig(cid=vsock.cid, socket=vsock.socket or ""),
        serial=_serial(_port(config, "serial", 1)),
        console=_console(_port(config, VIRTIO_CONSOLE, 1)),
        debug_console=_debug_console(_port(config, "debugcon")),
        pvpanic=True,
        watchdog=config.watchdog,
        landlock_enable=config.landlock is not None,
        landlock_rules=tuple(
            LandlockConfig(path=rule.path, access=rule.access) for rule in config.landlock or ()
        )
        or None,
        platform=_platform(config),
        pci_segments=_segments(config),
        numa=node_configs(config),
    )


def _platform(config: RunConfig) -> PlatformConfig | None:
    count = len(config.pci_weights)
    return None if count == 1 else PlatformConfig(num_pci_segments=count)


def _segments(config: RunConfig) -> tuple[PciSegmentConfig, ...] | None:
    found = (
        PciSegmentConfig(pci_segment=number, mmio32_aperture_weight=weight)
        for number, weight in enumerate(config.pci_weights)
        if weight != 1
    )
    return tuple(found) or None


def _segment(config: RunConfig, name: str) -> int:
    """Return the PCI segment of the device that the vmm calls ``name``."""
    return dict(config.pci_slots).get(name, 0) // SEGMENT_SLOTS


def _topology(spec: CpuSpec) -> CpuTopology | None:
    if spec.topology is None:
        return None
    threads, cores, dies, packages = spec.topology
    return CpuTopology(
        threads_per_core=threads, cores_per_die=cores, dies_per_package=dies, packages=packages
    )


def _affinity(config: RunConfig) -> tuple[CpuAffinity, ...] | None:
    pinned = [each for each in config.cpu_spec.affinity if each[0] < config.max_cpus]
    return tuple(CpuAffinity(vcpu=vcpu, host_cpus=where) for vcpu, where in pinned) or None


def _balloon(spec: BalloonSpec) -> BalloonConfig:
    return BalloonConfig(
        size=spec.size_bytes,
        deflate_on_oom=spec.deflate_on_oom,
        free_page_reporting=spec.page_reporting,
    )


def _disk(spec: BlockSpec, cpus: int) -> DiskConfig:
    return DiskConfig(
        path=spec.path,
        readonly=spec.read_only,
        direct=spec.direct,
        sparse=spec.sparse,
        serial=spec.id,
        num_queues=min(cpus, _MAX_DISK_QUEUES),
        queue_size=_QUEUE_SIZE,
        image_type="Raw",
        rate_limiter_config=_limits(spec.limits),
    )


def _card(spec: NetworkSpec) -> NetConfig:
    return NetConfig(
        tap=spec.tap_name or None,
        fds=spec.tap_fds or None,
        ip=_address(spec.host_ip),
        mask=_address(spec.netmask),
        mac=spec.mac.hex(":") or None,
        mtu=spec.mtu or None,
        num_queues=2 * spec.pairs,
        queue_size=_QUEUE_SIZE,
        rate_limiter_config=_limits(spec.limits),
    )


def _address(address: bytes) -> str | None:
    return socket.inet_ntop(socket.AF_INET, address) if address else None


def _limits(limits: RateLimits) -> RateLimiterConfig | None:
    bandwidth = _bucket(limits.bw_size, limits.bw_one_time_burst, limits.bw_refill_time)
    ops = _bucket(limits.ops_size, limits.ops_one_time_burst, limits.ops_refill_time)
    return RateLimiterConfig(bandwidth=bandwidth, ops=ops) if bandwidth or ops else None


def _bucket(size: int, burst: int, refill_time: int) -> TokenBucket | None:
    if not size or not refill_time:
        return None
    return TokenBucket(size=size, one_time_burst=burst or None, refill_time=refill_time)


def _port(config: RunConfig, hardware: str, num: int | None = None) -> SerialSpec | None:
    ports = (spec for spec in config.serial if spec.hardware == hardware)
    return next((spec for spec in ports if num in (None, spec.num)), None)


def _serial(spec: SerialSpec | None) -> SerialConfig:
    if spec is None:
        return SerialConfig(mode="Null")
    mode = _MODES[spec.type]
    return SerialConfig(mode=mode, file=_path(spec, "File"), socket=_path(spec, "Socket"))


def _console(spec: SerialSpec | None) -> ConsoleConfig:
    if spec is None:
        return ConsoleConfig(mode="Off")
    mode = _MODES[spec.type]
    return ConsoleConfig(mode=mode, file=_path(spec, "File"), socket=_path(spec, "Socket"))


def _debug_console(spec: SerialSpec | None) -> DebugConsoleConfig:
    if spec is None:
        return DebugConsoleConfig(mode="Off")
    mode = _MODES[spec.type]
    return DebugConsoleConfig(mode=mode, file=_path(spec, "File"), iobase=spec.debugcon_port)


def _path(spec: SerialSpec, mode: str) -> str | None:
    return spec.path if _MODES[spec.type] == mode else None
