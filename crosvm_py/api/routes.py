# SPDX-License-Identifier: BSD-3-Clause
"""Every endpoint of the API: its method, its body, and what carries it out."""

from __future__ import annotations

from crosvm_py.api import absent, additions, core_dump, creation, info, life, sizes
from crosvm_py.api.call import Route
from crosvm_py.vm_config import devices, requests
from crosvm_py.vm_config.schema import VmConfig
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm
    from crosvm_py.vm_config.field_types import Record

PREFIX: Final = "/api/v1/"


def _get(failure: str, steps: Callable[[ApiVm, Call], Steps]) -> Route:
    return Route("GET", failure, steps)


def _put(
    failure: str, steps: Callable[[ApiVm, Call], Steps], body: type[Record] | None = None
) -> Route:
    return Route("PUT", failure, steps, body)


def _add(
    name: str,
    thing: str,
    body: type[Record],
    *,
    steps: Callable[[ApiVm, Call], Steps] | None = None,
) -> Route:
    return _put(f"The {name} could not be added to the VM", steps or absent.no_device(thing), body)


# For a VM that lives as long as the vmm.
FIXED: Final[dict[str, Route]] = {
    "vmm.ping": _get("The VMM could not be reached", info.ping),
    "vmm.shutdown": _put("The VMM could not shut down", life.end_vmm),
    "vm.info": _get("The VM info could not be retrieved", info.info),
    "vm.counters": _get("The VM counters could not be retrieved", info.counters),
    "vm.create": _put("The VM could not be created", absent.fixed("created"), VmConfig),
    "vm.boot": _put("The VM could not boot", absent.fixed("running")),
    "vm.pause": _put("The VM could not be paused", life.pause),
    "vm.resume": _put("The VM could not resume", life.resume),
    "vm.shutdown": _put("The VM could not shut down", life.shut_down),
    "vm.reboot": _put("The VM could not reboot", life.reboot),
    "vm.delete": _put("The VM could not be deleted", life.delete),
    "vm.power-button": _put("The power button could not be pressed", life.press_power_button),
    "vm.nmi": _put("The VM could not be sent an NMI", life.inject_nmi),
    "vm.resize": _put("The VM could not be resized", sizes.resize, requests.VmResize),
    "vm.resize-disk": _put(
        "The disk could not be resized", sizes.resize_disk, requests.VmResizeDisk
    ),
    "vm.resize-zone": _put(
        "The memory zone could not be resized", sizes.resize_zone, requests.VmResizeZone
    ),
    "vm.add-device": _add("device", "VFIO devices", devices.DeviceConfig),
    "vm.add-user-device": _add("user device", "vfio-user devices", devices.UserDeviceConfig),
    "vm.add-disk": _add("disk", "", devices.DiskConfig, steps=additions.add_disk),
    "vm.add-fs": _add("fs device", "shared directories", devices.FsConfig),
    "vm.add-generic-vhost-user": _add(
        "vhost-user device", "vhost-user devices", devices.GenericVhostUserConfig
    ),
    "vm.add-pmem": _add("pmem device", "pmem devices", devices.PmemConfig),
    "vm.add-net": _add("network device", "", devices.NetConfig, steps=additions.add_net),
    "vm.add-vdpa": _add("vDPA device", "vDPA devices", devices.VdpaConfig),
    "vm.add-vsock": _add("vsock device", "", devices.VsockConfig, steps=additions.add_vsock),
    "vm.remove-device": _put(
        "The device could not be removed", additions.remove, requests.VmRemoveDevice
    ),
    "vm.snapshot": _put(
        "The VM could not be snapshotted", absent.not_yet("snapshot"), requests.VmSnapshotConfig
    ),
    "vm.restore": _put(
        "The VM could not be restored", absent.not_yet("restore"), requests.RestoreConfig
    ),
    "vm.receive-migration": _put(
        "The migration could not be received",
        absent.not_yet("migration"),
        requests.VmReceiveMigrationData,
    ),
    "vm.send-migration": _put(
        "The migration could not be sent",
        absent.not_yet("migration"),
        requests.VmSendMigrationData,
    ),
    "vm.coredump": _put("The VM could not be dumped", core_dump.dump, requests.VmCoredumpData),
}

# For a vmm that waits for its VM.
CREATABLE: Final[dict[str, Route]] = FIXED | {
    name: FIXED[name]._replace(steps=steps)
    for name, steps in {
        "vm.create": creation.create,
        "vm.boot": creation.boot,
        "vm.shutdown": creation.shut_down,
        "vm.delete": creation.delete,
    }.items()
}


def name_of(target: str) -> str:
    """Return the endpoint that a request names, by its path or in the absolute form."""
    if target.startswith("http://"):
        _, slash, rest = target.removeprefix("http://").partition("/")
        target = slash + rest
    return target.removeprefix(PREFIX) if target.startswith(PREFIX) else ""
