# SPDX-License-Identifier: BSD-3-Clause
"""Devices that come and go while the guest runs."""

from __future__ import annotations

import os

import msgspec

from crosvm_py.api import http
from crosvm_py.api.device_ids import id_of, with_ids
from crosvm_py.api.edits import appended, checked, removal
from crosvm_py.api.errors import NO_CONTENT, ApiError
from crosvm_py.kinds.later import LaterCard
from crosvm_py.kinds.order import pack_spec
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.requests.plug import MAX_PATH_BYTES, MAX_SPEC_BYTES, Plug, Plugged, Unplug
from crosvm_py.requests.protocol import Done
from crosvm_py.vm_config.answers import PciDeviceInfo
from crosvm_py.vm_config.codec import encode
from crosvm_py.vm_config.devices import DiskConfig, NetConfig, VsockConfig
from crosvm_py.vm_config.own_limits import limit_problems
from crosvm_py.vm_config.schema import VmConfig
from crosvm_py.vm_config.to_run import block_spec, network_spec
from crosvm_py.vm_config.unsupported import unsupported
from devices.virtio.vsock.common import VsockSpec
from sys_util.typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Generator

    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm
    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Response

_Pluggable: TypeAlias = "DiskConfig | NetConfig | VsockConfig"


def plug(vm: ApiVm, key: str, device: _Pluggable, fds: tuple[int, ...] = ()) -> Steps:
    """Add a device under ``key`` of a VM that runs; the answer says where it is.

    The descriptors ``fds`` of the client stay the caller's.
    """
    present = yield from _ids(vm)
    changed = with_ids(checked(appended(vm.known(), key, device)), present.values())
    device = _last(getattr(changed, key))
    _check_supported(appended(VmConfig(), key, device), key)
    plugged = yield from _plug(vm, device, fds)
    vm.keep(changed, {**present, plugged.id: device.id or plugged.id})
    answer = PciDeviceInfo(id=device.id or plugged.id, bdf=plugged.bdf)
    return http.answer(200, encode(answer))


def unplug(vm: ApiVm, device_id: str) -> Steps:
    """Ask the guest to let a device go; the configuration forgets it at once."""
    present = yield from _ids(vm)
    names = [name for name, known in present.items() if known == device_id]
    if not names:
        raise ApiError(404, f"no device has the id {device_id}")
    yield from vm.demand(Unplug(names[0]), Done)
    vm.keep(msgspec.structs.replace(vm.known(), **removal(vm.known(), device_id)), present)
    return NO_CONTENT


def _ids(vm: ApiVm) -> Generator[Pending, Response, dict[str, str]]:
    """Return the ids of the devices that are there now, by the names that the vmm has for them."""
    listed = yield from vm.demand(ListDevices(), DeviceList)
    return {device.name: id_of(vm.names, device.name) for device in listed.devices}


def _check_supported(config: VmConfig, key: str) -> None:
    """Refuse a device that this program cannot have.

    Raises:
        ApiError: it cannot.
    """
    for problem in (*unsupported(config), *limit_problems(config)):
        if problem.place.startswith(key):
            raise ApiError(problem.status, *problem.chain())


def _last(found: _Pluggable | tuple[_Pluggable, ...]) -> _Pluggable:
    return found[-1] if isinstance(found, tuple) else found


def _order(device: _Pluggable) -> tuple[str, bytes, bytes]:
    """Return the kind of device, its packed Spec, and the path of what it uses."""
    if isinstance(device, DiskConfig):
        spec = pack_spec(block_spec("disk", device), path="")
        return "block", spec, os.fsencode(device.path or "")
    if isinstance(device, VsockConfig):
        return "vsock", pack_spec(VsockSpec(device.cid)), os.fsencode(device.socket)
    return "net", _card_spec(device), b""


def _plug(
    vm: ApiVm, device: _Pluggable, fds: tuple[int, ...]
) -> Generator[Pending, Response, Plugged]:
    slot, segment = device.pci_device_id, device.pci_segment
    kind, spec, path = _order(device)
    if len(path) > MAX_PATH_BYTES or len(spec) > MAX_SPEC_BYTES:
        raise ApiError(500, f"a path of {len(path)} bytes is too long")
    try:
        request = Plug(kind, spec, path, device.id or "", slot, segment)
        return (yield from vm.demand(request, Plugged, fds))
    except ApiError as error:
        if slot is not None and error.reasons[:1] == (f"pci-slot {slot}: is in use",):
            reason = f"Valid PCI device identifier but already used: {slot}"
            raise ApiError(500, reason) from None
        raise


def _card_spec(card: NetConfig) -> bytes:
    """Return the packed Spec of a card."""
    spec = network_spec("net", card)
    later = LaterCard(
        *(spec.tap_name, spec.mac, spec.pairs, spec.mtu, spec.limits),
        makes=spec.makes,
        host_ip=spec.host_ip,
        netmask=spec.netmask,
    )
    return pack_spec(later)
