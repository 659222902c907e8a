# SPDX-License-Identifier: BSD-3-Clause
"""Pass requests about network cards to their devices."""

from __future__ import annotations

from crosvm_py.operations.devices import ask_device, find_device
from crosvm_py.operations.operation import operation
from crosvm_py.requests.net import SetLink
from devices.virtio import commands
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.pending import Pending


@operation(SetLink)
def set_link(vm: RunningVm, request: SetLink) -> Pending:
    """Set the link of a card up or down.

    Raises:
        ConfigError: there is no such device, or it is no card.
    """
    device = find_device(vm.supervisor.devices, request.device)
    if not device.kind.is_card:
        raise ConfigError(f"{device.name} is no network card")
    return ask_device(device, commands.SetLink(request.up))
