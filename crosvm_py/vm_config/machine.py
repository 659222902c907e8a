# SPDX-License-Identifier: BSD-3-Clause
"""Processors, memory, what is booted, and the platform."""

# Without "from __future__ import annotations": msgspec would compile each annotation's text.

from typing import Annotated

from crosvm_py.vm_config.field_types import (
    I32,
    U8,
    U16,
    U32,
    U64,
    ByteSize,
    CoreScheduling,
    HotplugMethod,
    Record,
    about,
    about_cli,
)


class CpuAffinity(Record, frozen=True, kw_only=True):
    """On which processors of the host one vCPU runs."""

    vcpu: Annotated[U32, about("number of the vCPU")]
    host_cpus: Annotated[tuple[U64, ...], about("processors of the host")]


class CpuFeatures(Record, frozen=True, kw_only=True):
    """Features of processors that a guest gets only on request."""

    amx: Annotated[bool, about("Intel AMX")] = False


class CpuTopology(Record, frozen=True, kw_only=True):
    """How vCPUs are arranged; the product of all is the largest number of vCPUs."""

    threads_per_core: Annotated[U16, about("threads in a core, 1 or 2")]
    cores_per_die: Annotated[U16, about("cores in a die")]
    dies_per_package: Annotated[U16, about("dies in a package")]
    packages: Annotated[U16, about("packages (sockets)")]


class CpusConfig(Record, frozen=True, kw_only=True):
    """The vCPUs."""

    boot_vcpus: Annotated[U32, about_cli("vCPUs at the start", "boot")]
    max_vcpus: Annotated[U32, about_cli("most vCPUs that there can be", "max")]
    topology: Annotated[CpuTopology | None, about("threads:cores:dies:packages")] = None
    kvm_hyperv: Annotated[bool, about("show Hyper-V's interfaces to the guest")] = False
    max_phys_bits: Annotated[U8, about("most bits of a physical address")] = 46
    affinity: Annotated[tuple[CpuAffinity, ...] | None, about("where each vCPU runs")] = None
    features: Annotated[CpuFeatures, about("features on request")] = CpuFeatures()
    nested: Annotated[bool, about("the guest may run VMs itself")] = True
    core_scheduling: Annotated[CoreScheduling, about("who shares a core")] = "Vm"
    profile: Annotated[str, about("model of the processor; only host")] = "host"


class MemoryZoneConfig(Record, frozen=True, kw_only=True):
    """A part of memory with settings of its own; ``memory.size`` is then 0."""

    id: Annotated[str, about("name of the zone")]
    size: Annotated[ByteSize, about("bytes of memory")]
    file: Annotated[str | None, about("file or directory behind the memory")] = None
    shared: Annotated[bool, about("other processes can share it")] = False
    hugepages: Annotated[bool, about("from the host's pool of huge pages")] = False
    hugepage_size: Annotated[ByteSize | None, about("bytes of a huge page")] = None
    host_numa_node: Annotated[U32 | None, about("NUMA node of the host")] = None
    hotplug_size: Annotated[ByteSize | None, about("bytes that can be added")] = None
    hotplugged_size: Annotated[ByteSize | None, about("bytes added at the start")] = None
    prefault: Annotated[bool, about("take all of it at the start")] = False
    reserve: Annotated[bool, about("reserve it on the host")] = False
    mergeable: Annotated[bool, about("the host may merge equal pages")] = False


class MemoryConfig(Record, frozen=True, kw_only=True):
    """The memory."""

    size: Annotated[ByteSize, about("bytes of memory")]
    mergeable: Annotated[bool, about("the host may merge equal pages")] = False
    hotplug_method: Annotated[HotplugMethod, about("how memory is added")] = "Acpi"
    hotplug_size: Annotated[ByteSize | None, about("bytes that can be added")] = None
    hotplugged_size: Annotated[ByteSize | None, about("bytes added at the start")] = None
    shared: Annotated[bool, about("other processes can share it")] = False
    hugepages: Annotated[bool, about("from the host's pool of huge pages")] = False
    hugepage_size: Annotated[ByteSize | None, about("bytes of a huge page")] = None
    prefault: Annotated[bool, about("take all of it at the start")] = False
    reserve: Annotated[bool, about("reserve it on the host")] = False
    zones: Annotated[tuple[MemoryZoneConfig, ...] | None, about_cli("its zones", None)] = None
    thp: Annotated[bool, about("huge pages where the host can make them")] = True


class PayloadConfig(Record, frozen=True, kw_only=True):
    """What is booted: a kernel or a firmware."""

    firmware: Annotated[str | None, about("path of the firmware")] = None
    kernel: Annotated[str | None, about("path of the kernel")] = None
    cmdline: Annotated[str | None, about("command line of the kernel")] = None
    initramfs: Annotated[str | None, about("path of the initial RAM disk")] = None


class NumaDistance(Record, frozen=True, kw_only=True):
    """How far one NUMA node is from another."""

    destination: Annotated[U32, about("the other node")] = 0
    distance: Annotated[U8, about("10 for itself, to 255")] = 0


class NumaConfig(Record, frozen=True, kw_only=True):
    """A NUMA node of the guest."""

    guest_numa_id: Annotated[U32, about("number of the node; there is a node 0")]
    cpus: Annotated[tuple[U32, ...] | None, about("its vCPUs")] = None
    distances: Annotated[
        tuple[NumaDistance, ...] | None, about("to other nodes, as node@30; 20 if none is given")
    ] = None
    memory_zones: Annotated[tuple[str, ...] | None, about("its memory zones")] = None
    pci_segments: Annotated[tuple[U16, ...] | None, about("its PCI segments")] = None
    device_id: Annotated[str | None, about("a device that is near to it")] = None


class PciSegmentConfig(Record, frozen=True, kw_only=True):
    """How much of the address space a PCI segment gets, compared to others."""

    pci_segment: Annotated[U16, about("number of the segment")] = 0
    mmio32_aperture_weight: Annotated[U32, about("its share below 4 GiB")] = 1
    mmio64_aperture_weight: Annotated[U32, about("its share above 4 GiB")] = 1


class PlatformConfig(Record, frozen=True, kw_only=True):
    """PCI segments, the IOMMU, and what SMBIOS tells the guest."""

    num_pci_segments: Annotated[U16, about("PCI segments, 1 to 96")] = 1
    iommu_segments: Annotated[tuple[U16, ...] | None, about("those behind the IOMMU")] = None
    iommu_address_width_bits: Annotated[
        U8, about_cli("bits of an address behind the IOMMU", "iommu_address_width")
    ] = 64
    system_serial_number: Annotated[str | None, about("serial number of the system")] = None
    system_uuid: Annotated[str | None, about("UUID of the system")] = None
    oem_strings: Annotated[tuple[str, ...] | None, about("OEM strings")] = None
    system_manufacturer: Annotated[str | None, about("who made the system")] = None
    system_product_name: Annotated[str | None, about("name of the product")] = None
    system_version: Annotated[str | None, about("version of the product")] = None
    system_family: Annotated[str | None, about("family of the product")] = None
    system_sku_number: Annotated[str | None, about("number in the catalogue")] = None
    chassis_asset_tag: Annotated[str | None, about("asset tag of the chassis")] = None
    iommufd: Annotated[bool, about("use iommufd for VFIO")] = False
    iommufd_fd: Annotated[I32 | None, about("descriptor of an open iommufd")] = None
    vfio_p2p_dma: Annotated[bool, about("devices may reach each other by DMA")] = True


class LandlockConfig(Record, frozen=True, kw_only=True):
    """A path that the VM may use under Landlock."""

    path: Annotated[str, about("file or directory")]
    access: Annotated[str, about("letters r and w")]
