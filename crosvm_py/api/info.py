# SPDX-License-Identifier: BSD-3-Clause
"""What clients ask without changing anything: ping, info, counters."""

from __future__ import annotations

import json

import msgspec

from crosvm_py.api import http
from crosvm_py.api.device_ids import id_of
from crosvm_py.api.errors import ApiError
from crosvm_py.api.versions import BUILD_VERSION, INTERFACE_VERSION
from crosvm_py.requests.balloon import PAGE_BYTES, BalloonQuery
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.vm_config.answers import DeviceNode, VmInfo, VmmPingResponse
from crosvm_py.vm_config.codec import encode
from crosvm_py.vm_config.machine_rules import ram_bytes
from devices.pci.address import pci_address
from devices.virtio.commands import BalloonState
from devices.virtio.transport.pci_capabilities import BAR_BYTES, VIRTIO_BAR
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator

    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm
    from crosvm_py.requests.devices import DeviceInfo
    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vm_config.schema import VmConfig

# What Cloud Hypervisor calls two of our counters, for each kind of device.
_DISK_NAMES: Final = {"bytes_to_guest": "read_bytes", "bytes_from_guest": "write_bytes"}
_LATENCY_CELLS: Final = ("timed", "ns", "min_ns", "max_ns")
_NO_MINIMUM: Final = (1 << 64) - 1
_CARD_NAMES: Final = {"bytes_to_guest": "rx_bytes", "bytes_from_guest": "tx_bytes"}

# The BAR of every device, without its address.
_BAR: Final[dict[str, object]] = {
    "index": VIRTIO_BAR,
    "size": BAR_BYTES,
    "type_": "Mmio32",
    "prefetchable": False,
}


def ping(vm: ApiVm, _call: Call) -> Steps:
    """Answer whether anybody is there, without the vmm."""
    yield from ()
    features = ("kvm",)
    answer = VmmPingResponse(
        build_version=BUILD_VERSION, version=INTERFACE_VERSION, pid=vm.pid, features=features
    )
    return http.answer(200, encode(answer))


def info(vm: ApiVm, _call: Call) -> Steps:
    """Return the configuration, the state and the devices."""
    config = vm.known()
    facts = yield from vm.facts()
    size, tree = ram_bytes(config.memory), None
    if facts.memory_bytes:
        config = _with_ptys(_with_cpus(config, facts.cpus), dict(facts.ptys))
        try:
            listed = yield from vm.demand(ListDevices(), DeviceList)
            size = facts.memory_bytes - (yield from _balloon_bytes(vm, config))
            tree = _tree(vm.names, listed.devices)
        except ApiError:
            facts = yield from vm.facts()
            if facts.memory_bytes:  # otherwise the VM has ended in between
                raise
    answer = VmInfo(
        config=config, state=vm.state_of(facts), memory_actual_size=max(0, size), device_tree=tree
    )
    return http.answer(200, encode(answer))


def _with_cpus(config: VmConfig, cpus: int) -> VmConfig:
    """Return the configuration with the present number of vCPUs; not only this API changes it."""
    changed = msgspec.structs.replace(config.cpus, boot_vcpus=cpus)
    return msgspec.structs.replace(config, cpus=changed)


def _with_ptys(config: VmConfig, ptys: dict[str, str]) -> VmConfig:
    """Return the configuration in which consoles of mode Pty say where their terminals are."""
    changes: dict[str, object] = {}
    for key, place in (("serial", "COM1"), ("console", "virtio port 1")):
        console = getattr(config, key)
        if console.mode == "Pty" and place in ptys:
            changes[key] = msgspec.structs.replace(console, file=ptys[place])
    return msgspec.structs.replace(config, **changes)


def _balloon_bytes(vm: ApiVm, config: VmConfig) -> Generator[Pending, Response, int]:
    if config.balloon is None:
        return 0
    try:
        state = yield from vm.demand(BalloonQuery(refresh=False, hint=False), BalloonState)
    except ApiError:  # its process has ended for good, so the guest keeps what it has
        return 0
    return state.actual_pages * PAGE_BYTES


def _tree(ids: dict[str, str], devices: tuple[DeviceInfo, ...]) -> dict[str, DeviceNode]:
    tree: dict[str, DeviceNode] = {}
    for device in devices:
        name = id_of(ids, device.name)
        transport = f"_virtio-pci-{name}"
        bdf = pci_address(device.slot) if device.slot else None
        bar: dict[str, object] = {"PciBar": {**_BAR, "base": device.bar_gpa}}
        tree[transport] = DeviceNode(
            id=transport,
            resources=(bar,) if device.bar_gpa else (),
            children=(name,),
            pci_bdf=bdf,
        )
        tree[name] = DeviceNode(id=name, parent=transport)
    return tree


def counters(vm: ApiVm, _call: Call) -> Steps:
    """Return the counters of every device."""
    yield from vm.booted()
    listed = yield from vm.demand(ListDevices(), DeviceList)
    found = {id_of(vm.names, device.name): _counters(device) for device in listed.devices}
    return http.answer(200, json.dumps(found, separators=(",", ":")).encode("ascii"))


def _counters(device: DeviceInfo) -> dict[str, int]:
    kind = device.name.partition(":")[0]
    names = {"block": _DISK_NAMES, "net": _CARD_NAMES}.get(kind, {})
    values = {each.name: each.value for each in device.counters}
    found = {names.get(name, name): value for name, value in values.items()}
    if "read_timed" in values:
        for what in ("read", "write"):
            found |= _latencies(what, *(found.pop(f"{what}_{part}", 0) for part in _LATENCY_CELLS))
    return found


def _latencies(what: str, timed: int, total: int, least: int, most: int) -> dict[str, int]:
    """Return what Cloud Hypervisor tells of latencies, in microseconds, of those in nanoseconds."""
    return {
        f"{what}_latency_min": least // 1000 if timed else _NO_MINIMUM,
        f"{what}_latency_max": most // 1000,
        f"{what}_latency_avg": total // timed // 1000 if timed else 0,
    }
