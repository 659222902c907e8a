# SPDX-License-Identifier: BSD-3-Clause
"""Pass requests about the balloon to its device."""

from __future__ import annotations

from crosvm_py.kinds.balloon import BALLOON
from crosvm_py.operations.devices import ask_device
from crosvm_py.operations.operation import operation
from crosvm_py.requests.balloon import PAGE_BYTES, BalloonAdjust, BalloonQuery, BalloonSet
from devices.virtio.commands import AdjustTarget, SetTarget, TellState
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.pending import Pending
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from devices.virtio.commands import Command


@operation(BalloonSet)
def set_balloon(vm: RunningVm, request: BalloonSet) -> Pending:
    """Set the size of the balloon."""
    return ask_balloon(vm, SetTarget(request.size_bytes // PAGE_BYTES))


@operation(BalloonAdjust)
def adjust_balloon(vm: RunningVm, request: BalloonAdjust) -> Pending:
    """Change the size of the balloon."""
    return ask_balloon(vm, AdjustTarget(request.pages))


@operation(BalloonQuery)
def query_balloon(vm: RunningVm, request: BalloonQuery) -> Pending:
    """Return the state of the balloon."""
    return ask_balloon(vm, TellState(request.refresh, request.hint))


def find_balloon(vm: RunningVm) -> DeviceProcess:
    """Return the balloon.

    Raises:
        ConfigError: the VM has none.
    """
    device = next((each for each in vm.supervisor.devices if each.kind is BALLOON), None)
    if device is None:
        raise ConfigError("this VM has no balloon (crosvm run --balloon gives it one)")
    return device


def ask_balloon(vm: RunningVm, command: Command) -> Pending:
    """Send the balloon a command; the returned ``Pending`` gets its answer.

    Raises:
        ConfigError: the VM has no balloon.
    """
    return ask_device(find_balloon(vm), command)
