# SPDX-License-Identifier: BSD-3-Clause
"""Configurations with a device more or less."""

from __future__ import annotations

import msgspec

from crosvm_py.api.errors import ApiError
from crosvm_py.vm_config.validation import problems
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.vm_config.devices import DiskConfig, NetConfig, VsockConfig
    from crosvm_py.vm_config.schema import VmConfig

# The keys of a configuration whose devices can be removed.
_LISTS: Final = (
    *("disks", "net", "fs", "pmem", "generic_vhost_user", "devices", "user_devices", "vdpa"),
)


def checked(config: VmConfig) -> VmConfig:
    """Return a configuration that breaks no rule.

    Raises:
        ApiError: it breaks one.
    """
    found = problems(config)
    if found:
        raise ApiError(found[0].status, *found[0].chain())
    return config


def appended(config: VmConfig, key: str, device: DiskConfig | NetConfig | VsockConfig) -> VmConfig:
    """Return the configuration with one more device in the list ``key``, or as the only one."""
    if key not in _LISTS:
        return msgspec.structs.replace(config, **{key: device})
    return msgspec.structs.replace(config, **{key: (*(getattr(config, key) or ()), device)})


def removal(config: VmConfig, device_id: str) -> dict[str, object]:
    """Return the keys that change when the device is removed; none if it is not there."""
    changes: dict[str, object] = {}
    for key in _LISTS:
        devices = getattr(config, key) or ()
        left = tuple(device for device in devices if device.id != device_id)
        if len(left) < len(devices):
            changes[key] = left or None
    if config.vsock is not None and config.vsock.id == device_id:
        changes["vsock"] = None
    return changes
