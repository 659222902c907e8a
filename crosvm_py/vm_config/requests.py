# SPDX-License-Identifier: BSD-3-Clause
"""The bodies of the API's other requests. Those that add a device are the device's own."""

# Without "from __future__ import annotations": msgspec would compile each annotation's text.

from typing import Annotated

from crosvm_py.vm_config.field_types import (
    I32,
    U32,
    U64,
    ByteSize,
    MigrationMode,
    Record,
    RestoreMode,
    TimeoutStrategy,
    about,
)


class VmResize(Record, frozen=True, kw_only=True):
    """vm.resize."""

    desired_vcpus: Annotated[U32 | None, about("number of vCPUs")] = None
    desired_ram: Annotated[ByteSize | None, about("bytes of memory")] = None
    desired_balloon: Annotated[ByteSize | None, about("bytes in the balloon")] = None


class VmResizeDisk(Record, frozen=True, kw_only=True):
    """vm.resize-disk."""

    id: Annotated[str, about("the disk")]
    desired_size: Annotated[ByteSize, about("bytes, a multiple of 512")]


class VmResizeZone(Record, frozen=True, kw_only=True):
    """vm.resize-zone."""

    id: Annotated[str, about("the memory zone")]
    desired_ram: Annotated[ByteSize, about("bytes of memory")]


class VmRemoveDevice(Record, frozen=True, kw_only=True):
    """vm.remove-device."""

    id: Annotated[str, about("the device")]


class VmSnapshotConfig(Record, frozen=True, kw_only=True):
    """vm.snapshot."""

    destination_url: Annotated[str, about("file:// and a directory that exists")]


class VmCoredumpData(Record, frozen=True, kw_only=True):
    """vm.coredump."""

    destination_url: Annotated[str, about("file:// and a file that does not exist")]


class RestoredNetConfig(Record, frozen=True, kw_only=True):
    """Descriptors for a card that is restored."""

    id: Annotated[str, about("the card")]
    num_fds: Annotated[U64, about("how many of the descriptors are its own")] = 0


class RestoredVfioConfig(Record, frozen=True, kw_only=True):
    """A descriptor for a VFIO device that is restored."""

    id: Annotated[str, about("the device")]


class ZoneUpdate(Record, frozen=True, kw_only=True):
    """Another NUMA node of the host for a memory zone."""

    id: Annotated[str, about("the memory zone")]
    host_numa_node: Annotated[U32, about("NUMA node of the host")]


class RestoreConfig(Record, frozen=True, kw_only=True):
    """vm.restore."""

    source_url: Annotated[str, about("file:// and the directory of a snapshot")]
    prefault: Annotated[bool, about("take all memory at the start")] = False
    memory_restore_mode: Annotated[RestoreMode, about("when memory is read")] = "Copy"
    net_fds: Annotated[tuple[RestoredNetConfig, ...] | None, about("of cards")] = None
    vfio_fds: Annotated[tuple[RestoredVfioConfig, ...] | None, about("of VFIO devices")] = None
    iommufd_fd: Annotated[I32 | None, about("descriptor of an open iommufd")] = None
    resume: Annotated[bool, about("let the VM run at once")] = False
    zone_updates: Annotated[tuple[ZoneUpdate, ...], about("NUMA nodes of zones")] = ()


class VmSendMigrationData(Record, frozen=True, kw_only=True):
    """vm.send-migration."""

    destination_url: Annotated[str, about("tcp:HOST:PORT or unix:PATH")]
    local: Annotated[bool, about("to a process of this host, which takes the memory")] = False
    preserve_source: Annotated[bool, about("keep this process")] = False
    downtime_ms: Annotated[U64, about("longest pause, in milliseconds")] = 300
    timeout_s: Annotated[U64, about("longest duration, in seconds")] = 3600
    timeout_strategy: Annotated[TimeoutStrategy, about("what happens then")] = "Cancel"
    connections: Annotated[U32, about("TCP connections, 1 to 128")] = 1
    tls_dir: Annotated[str | None, about("directory with keys for TLS")] = None
    memory_mode: Annotated[MigrationMode, about("when memory is sent")] = "Precopy"


class VmReceiveMigrationData(Record, frozen=True, kw_only=True):
    """vm.receive-migration."""

    receiver_url: Annotated[str, about("tcp:HOST:PORT or unix:PATH")]
    tls_dir: Annotated[str | None, about("directory with keys for TLS")] = None
    memory_mode: Annotated[MigrationMode, about("when memory is sent")] = "Precopy"
    vfio_fds: Annotated[tuple[RestoredVfioConfig, ...] | None, about("of VFIO devices")] = None
    iommufd_fd: Annotated[I32 | None, about("descriptor of an open iommufd")] = None
    zone_updates: Annotated[tuple[ZoneUpdate, ...], about("NUMA nodes of zones")] = ()
