# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a VM: the body of vm.create, and the file of ``crosvm run --config``."""

# Without "from __future__ import annotations": msgspec would compile each annotation's text.

from typing import Annotated

from crosvm_py.vm_config.devices import (
    BalloonConfig,
    ConsoleConfig,
    DebugConsoleConfig,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
    NetConfig,
    PmemConfig,
    RateLimiterGroupConfig,
    RngConfig,
    RtcConfig,
    SerialConfig,
    TpmConfig,
    UserDeviceConfig,
    VdpaConfig,
    VsockConfig,
)
from crosvm_py.vm_config.field_types import Record, about
from crosvm_py.vm_config.machine import (
    CpusConfig,
    LandlockConfig,
    MemoryConfig,
    NumaConfig,
    PayloadConfig,
    PciSegmentConfig,
    PlatformConfig,
)
from sys_util.typing import Final

DEFAULT_MEMORY_BYTES: Final = 512 << 20
DEFAULT_RNG_SOURCE: Final = "/dev/urandom"


class VmConfig(Record, frozen=True, kw_only=True):
    """A whole VM."""

    cpus: Annotated[CpusConfig, about("the vCPUs")] = CpusConfig(boot_vcpus=1, max_vcpus=1)
    memory: Annotated[MemoryConfig, about("the memory")] = MemoryConfig(size=DEFAULT_MEMORY_BYTES)
    payload: Annotated[PayloadConfig | None, about("what is booted")] = None
    rate_limit_groups: Annotated[
        tuple[RateLimiterGroupConfig, ...] | None, about("limits that disks share")
    ] = None
    disks: Annotated[tuple[DiskConfig, ...] | None, about("disks")] = None
    net: Annotated[tuple[NetConfig, ...] | None, about("network cards")] = None
    rng: Annotated[RngConfig, about("entropy device")] = RngConfig(src=DEFAULT_RNG_SOURCE)
    balloon: Annotated[BalloonConfig | None, about("memory balloon")] = None
    fs: Annotated[tuple[FsConfig, ...] | None, about("shared directories")] = None
    generic_vhost_user: Annotated[
        tuple[GenericVhostUserConfig, ...] | None, about("vhost-user devices of any type")
    ] = None
    pmem: Annotated[tuple[PmemConfig, ...] | None, about("persistent memory")] = None
    serial: Annotated[SerialConfig, about("serial port")] = SerialConfig(mode="Null")
    console: Annotated[ConsoleConfig, about("virtio console")] = ConsoleConfig(mode="Tty")
    debug_console: Annotated[DebugConsoleConfig, about("debug console")] = DebugConsoleConfig(
        mode="Off", iobase=0xE9
    )
    devices: Annotated[tuple[DeviceConfig, ...] | None, about("VFIO devices")] = None
    user_devices: Annotated[tuple[UserDeviceConfig, ...] | None, about("vfio-user")] = None
    vdpa: Annotated[tuple[VdpaConfig, ...] | None, about("vDPA devices")] = None
    vsock: Annotated[VsockConfig | None, about("sockets between host and guest")] = None
    pvpanic: Annotated[bool, about("the guest can report its panic")] = False
    iommu: Annotated[bool, about("a virtual IOMMU")] = False
    numa: Annotated[tuple[NumaConfig, ...] | None, about("NUMA nodes")] = None
    watchdog: Annotated[bool, about("a watchdog timer (ACPI WDAT)")] = False
    rtc: Annotated[RtcConfig | None, about("a clock (virtio-rtc)")] = None
    pci_segments: Annotated[tuple[PciSegmentConfig, ...] | None, about("weights")] = None
    platform: Annotated[PlatformConfig | None, about("platform")] = None
    tpm: Annotated[TpmConfig | None, about("a TPM")] = None
    landlock_enable: Annotated[bool, about("confine the VM with Landlock")] = False
    landlock_rules: Annotated[tuple[LandlockConfig, ...] | None, about("its rules")] = None
