# SPDX-License-Identifier: BSD-3-Clause
"""Carry out what clients of the control socket ask for."""

from __future__ import annotations

from crosvm_py.exit_status import VmExit
from crosvm_py.operations.balloon import ask_balloon
from crosvm_py.operations.devices import limit_device, list_devices, restart_device
from crosvm_py.operations.link import set_link
from crosvm_py.operations.resize_disk import resize_disk
from crosvm_py.requests import protocol
from crosvm_py.requests.balloon import BalloonAdjust, BalloonQuery, BalloonSet
from crosvm_py.requests.devices import LimitDevice, ListDevices, ResizeDisk, RestartDevice
from crosvm_py.requests.net import SetLink
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.x86_64.machine import Machine
    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.requests.pending import Handler, Pending
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.vmm.supervisor import Supervisor

    DeviceRequest = (
        ListDevices
        | LimitDevice
        | RestartDevice
        | ResizeDisk
        | SetLink
        | BalloonSet
        | BalloonAdjust
        | BalloonQuery
    )


def request_handler(
    machine: Machine,
    supervisor: Supervisor,
    suspension: Suspension,
    end: Callable[[VmExit, str], None],
) -> Handler:
    """Return the handler of one VM's control server."""

    def handle(request: Request) -> Response | Pending:
        match request:
            case protocol.Stop():
                end(VmExit.STOPPED, "stopped by a client")
            case protocol.Suspend():
                return suspension.suspend()
            case protocol.Resume():
                return suspension.resume()
            case protocol.PowerButton():
                machine.press_power_button()
            case _:
                return _ask_devices(supervisor, request)
        return protocol.Done()

    return handle


def _ask_devices(supervisor: Supervisor, request: DeviceRequest) -> Response | Pending:
    match request:
        case ListDevices():
            return list_devices(supervisor.devices)
        case LimitDevice():
            return limit_device(supervisor.devices, request)
        case RestartDevice():
            return restart_device(supervisor, request)
        case ResizeDisk():
            return resize_disk(supervisor, request)
        case SetLink():
            return set_link(supervisor.devices, request)
        case BalloonSet() | BalloonAdjust() | BalloonQuery():
            return ask_balloon(supervisor.devices, request)
