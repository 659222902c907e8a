# SPDX-License-Identifier: BSD-3-Clause
"""Describe a VM of ``crosvm run`` as Cloud Hypervisor would, for vm.info."""

from __future__ import annotations

from crosvm_py.vm_config.codec import encode
from crosvm_py.vm_config.devices import (
    BalloonConfig,
    ConsoleConfig,
    DiskConfig,
    NetConfig,
    RateLimiterConfig,
    SerialConfig,
    TokenBucket,
    VsockConfig,
)
from crosvm_py.vm_config.machine import CpusConfig, MemoryConfig, PayloadConfig
from crosvm_py.vm_config.schema import VmConfig
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.config import NetworkSpec, RunConfig, SerialSpec
    from crosvm_py.vm_config.field_types import ConsoleMode
    from devices.virtio.balloon.device import BalloonSpec
    from devices.virtio.block.image import BlockSpec
    from devices.virtio.rate_limiter import RateLimits

_MODES: Final[dict[str, ConsoleMode]] = {
    "stdout": "Tty",
    "file": "File",
    "pty": "Pty",
    "unix": "Socket",
    "unix-stream": "Socket",
}


def describe_run(config: RunConfig) -> bytes:
    """Return the configuration of a run as JSON."""
    vsock = config.vsock
    made = VmConfig(
        cpus=CpusConfig(boot_vcpus=config.cpus, max_vcpus=config.cpus),
        memory=MemoryConfig(size=config.memory_bytes, shared=True, thp=config.huge_pages),
        payload=PayloadConfig(
            kernel=config.kernel, cmdline=" ".join(config.params), initramfs=config.initrd
        ),
        disks=tuple(_disk(disk, config.cpus) for disk in config.disks) or None,
        net=tuple(_card(card) for card in config.networks) or None,
        balloon=_balloon(config.balloon),
        serial=_serial(next(port for port in config.serial if port.hardware == "serial")),
        console=ConsoleConfig(mode=_mode([*_consoles(config)])),
        vsock=None if vsock is None else VsockConfig(cid=vsock.cid, socket=vsock.socket or ""),
        pvpanic=True,
    )
    return encode(made)


def _consoles(config: RunConfig) -> list[SerialSpec]:
    return [port for port in config.serial if port.hardware == "virtio-console"]


def _mode(ports: list[SerialSpec]) -> ConsoleMode:
    return _MODES.get(ports[0].type, "Null") if ports else "Off"


def _serial(port: SerialSpec) -> SerialConfig:
    mode = _mode([port])
    return SerialConfig(mode=mode, file=port.path if mode == "File" else None)


def _disk(disk: BlockSpec, cpus: int) -> DiskConfig:
    return DiskConfig(
        path=disk.path,
        readonly=disk.read_only,
        direct=disk.direct,
        num_queues=max(1, min(cpus, 4)),
        serial=disk.id,
        sparse=disk.sparse,
        image_type="Raw",
        rate_limiter_config=_limits(disk.limits),
    )


def _card(card: NetworkSpec) -> NetConfig:
    return NetConfig(
        tap=card.tap_name or None,
        ip=_address(card.host_ip),
        mask=_address(card.netmask),
        mac=":".join(f"{byte:02x}" for byte in card.mac) or None,
        mtu=card.mtu or None,
        num_queues=2 * card.pairs,
        fds=card.tap_fds or None,
        rate_limiter_config=_limits(card.limits),
    )


def _address(address: bytes) -> str | None:
    return ".".join(map(str, address)) or None


def _balloon(balloon: BalloonSpec | None) -> BalloonConfig | None:
    if balloon is None:
        return None
    return BalloonConfig(
        size=balloon.size_bytes,
        deflate_on_oom=balloon.deflate_on_oom,
        free_page_reporting=balloon.page_reporting,
    )


def _limits(limits: RateLimits) -> RateLimiterConfig | None:
    def bucket(size: int, burst: int, refill: int) -> TokenBucket | None:
        if not size or not refill:
            return None
        return TokenBucket(size=size, one_time_burst=burst or None, refill_time=refill)

    bandwidth, ops = bucket(*limits[:3]), bucket(*limits[3:])
    return RateLimiterConfig(bandwidth=bandwidth, ops=ops) if bandwidth or ops else None
