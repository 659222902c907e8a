# SPDX-License-Identifier: BSD-3-Clause
"""The answers of the API."""

# Without "from __future__ import annotations": msgspec would compile each annotation's text.

from typing import Annotated, TypeAlias

from crosvm_py.vm_config.field_types import U64, Record, VmState, about
from crosvm_py.vm_config.schema import VmConfig


class VmmPingResponse(Record, frozen=True, kw_only=True):
    """vmm.ping."""

    build_version: Annotated[str, about("version and how it was built")]
    version: Annotated[str, about("version of Cloud Hypervisor's interface")]
    pid: Annotated[int, about("process id of the vmm")]
    features: Annotated[tuple[str, ...], about("what is built in")]


class PciDeviceInfo(Record, frozen=True, kw_only=True):
    """vm.add-*: where the new device is."""

    id: Annotated[str, about("name of the device")]
    bdf: Annotated[str, about("segment:bus:device.function")]


class DeviceNode(Record, frozen=True, kw_only=True):
    """A device in the tree of vm.info. A resource is an object of one key, which is its kind."""

    id: Annotated[str, about("name of the device")]
    resources: Annotated[tuple[dict[str, object], ...], about("addresses and interrupts")] = ()
    parent: Annotated[str | None, about("the device that it belongs to")] = None
    children: Annotated[tuple[str, ...], about("devices that belong to it")] = ()
    pci_bdf: Annotated[str | None, about("segment:bus:device.function")] = None


class VmInfo(Record, frozen=True, kw_only=True):
    """vm.info."""

    config: Annotated[VmConfig, about("the configuration")]
    state: Annotated[VmState, about("state of the VM")]
    memory_actual_size: Annotated[U64, about("bytes that the guest has")]
    device_tree: Annotated[dict[str, DeviceNode] | None, about("devices by name")] = None


# vm.counters: of each device its counters by name.
VmCounters: TypeAlias = dict[str, dict[str, U64]]
