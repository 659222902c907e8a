# SPDX-License-Identifier: BSD-3-Clause
"""A fake running VM that has devices but no machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from crosvm_py.operations.operation import RunningVm

if TYPE_CHECKING:
    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.supervisor import Supervisor


class _Devices:
    def __init__(self, devices: tuple[DeviceProcess, ...]) -> None:
        self.devices = devices


class _Slots:
    """Of a machine, slots where no device has a BAR."""

    def bar_gpa(self, _slot: int) -> int:
        return 0


def vm_of(*devices: DeviceProcess) -> RunningVm:
    """Return a VM with these devices."""
    return supervised(cast("Supervisor", _Devices(devices)))


def supervised(supervisor: Supervisor) -> RunningVm:
    """Return a VM with the devices of ``supervisor`` and without a machine."""
    nothing = object()
    return RunningVm(
        cast("Board", _Slots()),
        supervisor,
        cast("Suspension", nothing),
        cast("VcpuSet", nothing),
        lambda *_: None,
    )
