# SPDX-License-Identifier: BSD-3-Clause
"""Devices that come and go while the guest runs."""

from __future__ import annotations

from crosvm_py.operations.operation import operation
from crosvm_py.requests.plug import Await, Release, Reserve, Unplug
from crosvm_py.requests.protocol import Done
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.plug import Reserved
    from crosvm_py.vmm.plugging import Plugging


def _plugging(vm: RunningVm) -> Plugging:
    if vm.plugging is None:
        raise ConfigError("devices of this VM can neither come nor go")
    return vm.plugging


@operation(Reserve)
def reserve(vm: RunningVm, request: Reserve) -> Reserved | Pending:
    """Reserve a place for a device.

    Raises:
        ConfigError: the VM has no such place.
    """
    return _plugging(vm).reserve_soon(request.kind, request.id, request.slot, request.segment)


@operation(Await)
def await_device(vm: RunningVm, request: Await) -> Pending:
    """Answer when the device is there, or never will be.

    Raises:
        ConfigError: nothing is reserved.
    """
    return _plugging(vm).wait(request.place)


@operation(Release)
def release(vm: RunningVm, request: Release) -> Done:
    """Give a place up.

    Raises:
        ConfigError: nothing is reserved.
    """
    _plugging(vm).release(request.place, request.reason)
    return Done()


@operation(Unplug)
def unplug(vm: RunningVm, request: Unplug) -> Done:
    """Ask the guest to let a device go.

    Raises:
        ConfigError: it cannot be removed.
    """
    _plugging(vm).unplug(request.id)
    return Done()
