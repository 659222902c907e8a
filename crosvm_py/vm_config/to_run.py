# SPDX-License-Identifier: BSD-3-Clause
"""From a configuration of the schema to the one that ``crosvm run`` uses."""

from __future__ import annotations

from crosvm_py.config import (
    ACPI,
    MAX_CPUS,
    POOL_PAGE_BYTES,
    VIRTIO_CONSOLE,
    VIRTIO_MEM,
    CpuSpec,
    NetworkSpec,
    RunConfig,
    SerialSpec,
)
from crosvm_py.vm_config.addresses import ipv4_bytes, mac_bytes
from crosvm_py.vm_config.errors import UnfitConfigError
from crosvm_py.vm_config.landlock import landlock_rules
from crosvm_py.vm_config.machine_rules import ram_bytes
from crosvm_py.vm_config.numa import nodes_of, numa_problems, zones_of
from crosvm_py.vm_config.own_limits import limit_problems, rate_limits, topology_of
from crosvm_py.vm_config.pci_slots import device_slots, pci_weights
from crosvm_py.vm_config.unsupported import unsupported
from crosvm_py.vm_config.validation import problems
from devices.legacy_ports import COM_PORTS
from devices.virtio.balloon.device import BalloonSpec
from devices.virtio.block.spec import BlockSpec
from devices.virtio.rng.device import RngSpec
from devices.virtio.vsock.common import VsockSpec
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.vm_config.devices import BalloonConfig, DiskConfig, NetConfig
    from crosvm_py.vm_config.machine import CpusConfig
    from crosvm_py.vm_config.problem import Problem
    from crosvm_py.vm_config.schema import VmConfig

DEBUG_PORT: Final = 0xE9

_METHODS: Final = {"Acpi": ACPI, "VirtioMem": VIRTIO_MEM}

# The types of our ports for the modes of consoles. A serial port that is off is there all the same.
TYPES: Final = {"Null": "sink", "Off": "sink", "Pty": "pty", "Tty": "stdout", "File": "file"}


def all_problems(config: VmConfig) -> list[Problem]:
    """Return why a configuration cannot run here: rules that it breaks, and what does not exist."""
    return [
        *problems(config),
        *unsupported(config),
        *numa_problems(config),
        *limit_problems(config),
    ]


def run_config(config: VmConfig) -> RunConfig:
    """Return what ``crosvm run`` is to run. Fields that the schema does not know are the defaults.

    Raises:
        UnfitConfigError: the configuration cannot run here; it says the first reason.
    """
    payload, balloon, vsock = config.payload, config.balloon, config.vsock
    found = all_problems(config)
    if found:
        raise UnfitConfigError(found[0])
    if payload is None or payload.kernel is None:
        raise ConfigError("payload.kernel: is missing")
    return RunConfig(
        kernel=payload.kernel,
        params=(payload.cmdline,) if payload.cmdline else (),
        cpus=config.cpus.boot_vcpus,
        cpu_spec=cpu_spec(config.cpus),
        memory_bytes=ram_bytes(config.memory),
        initrd=payload.initramfs,
        disks=tuple(
            block_spec(f"disks[{index}]", disk) for index, disk in enumerate(config.disks or ())
        ),
        serial=serial_specs(config),
        rng=RngSpec(),
        socket=None,
        name="crosvm",
        seccomp_policy_dir=None,
        seccomp_log_failures=False,
        sandbox=True,
        extended_status=False,
        balloon=None if balloon is None else balloon_spec(balloon),
        vsock=None if vsock is None else VsockSpec(vsock.cid, vsock.socket),
        networks=tuple(
            network_spec(f"net[{index}]", card) for index, card in enumerate(config.net or ())
        ),
        core_scheduling=False if config.cpus.core_scheduling == "Off" else None,
        per_vm_core_scheduling=config.cpus.core_scheduling == "Vm",
        huge_pages=config.memory.thp,
        landlock=landlock_rules(config),
        watchdog=config.watchdog,
        pci_weights=pci_weights(config),
        pci_slots=device_slots(config),
        pool_page_bytes=_pool_page_bytes(config),
        prefault=config.memory.prefault,
        hotplug_bytes=config.memory.hotplug_size or 0,
        hotplug_method=_METHODS[config.memory.hotplug_method],
        hotplugged_bytes=config.memory.hotplugged_size or 0,
        zones=zones_of(config),
        numa=nodes_of(config),
    )


def cpu_spec(config: CpusConfig) -> CpuSpec:
    """Return what a configuration without problems says of vCPUs, beside their number."""
    return CpuSpec(
        most=min(config.max_vcpus, MAX_CPUS),
        topology=None if config.max_vcpus > MAX_CPUS else topology_of(config),
        address_bits=config.max_phys_bits,
        affinity=tuple((each.vcpu, each.host_cpus) for each in config.affinity or ()),
    )


def _pool_page_bytes(config: VmConfig) -> int:
    if not config.memory.hugepages:
        return 0
    return config.memory.hugepage_size or POOL_PAGE_BYTES


def balloon_spec(config: BalloonConfig) -> BalloonSpec:
    """Return the balloon that a configuration without problems describes."""
    return BalloonSpec(config.size, config.deflate_on_oom, config.free_page_reporting)


def block_spec(place: str, disk: DiskConfig) -> BlockSpec:
    """Return the disk that a configuration without problems describes.

    ``place`` names it in messages.
    """
    return BlockSpec(
        path=disk.path or "",
        read_only=disk.readonly,
        sparse=disk.sparse,
        id=disk.serial,
        direct=disk.direct,
        option=place,
        limits=rate_limits(disk.rate_limiter_config),
    )


def network_spec(place: str, card: NetConfig) -> NetworkSpec:
    """Return the card that a configuration without problems describes.

    ``place`` names it in messages.
    """
    return NetworkSpec(
        option=place,
        tap_name=card.tap or "",
        tap_fds=card.fds or (),
        host_ip=ipv4_bytes(card.ip or "") or b"",
        netmask=ipv4_bytes(card.mask or "") or b"",
        mac=mac_bytes(card.mac or "") or b"",
        pairs=card.num_queues // 2,
        mtu=card.mtu or 0,
        limits=rate_limits(card.rate_limiter_config),
        makes=not card.fds,
    )


def serial_specs(config: VmConfig) -> tuple[SerialSpec, ...]:
    """Return the ports: the virtio console, if any, COM1, a debug console, and the other COM ports.

    The kernel's command line alone says which of them is its console, as in Cloud Hypervisor. The
    guest reads the terminal through the virtio console, or without one through COM1.
    """
    console, serial, debug = config.console, config.serial, config.debug_console
    on_terminal = console.mode == "Tty"
    ports = [
        SerialSpec(
            TYPES[serial.mode],
            path=_path(serial.mode, serial.file),
            stdin=serial.mode == "Tty" and not on_terminal,
        )
    ]
    if console.mode != "Off":
        type_, path = TYPES[console.mode], _path(console.mode, console.file)
        ports.append(SerialSpec(type_, VIRTIO_CONSOLE, path=path, stdin=on_terminal))
    if debug.mode != "Off":
        port = DEBUG_PORT if debug.iobase is None else debug.iobase
        path = _path(debug.mode, debug.file)
        ports.append(SerialSpec(TYPES[debug.mode], "debugcon", path=path, debugcon_port=port))
    ports += [SerialSpec("sink", num=num) for num in COM_PORTS if num != 1]
    return tuple(ports)


def _path(mode: str, file: str | None) -> str | None:
    return file if mode == "File" else None
