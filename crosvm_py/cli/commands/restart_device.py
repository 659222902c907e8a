# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm restart-device``: give a device of a running VM a new process."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import DEVICE, SOCKET, ask_for, device_name
from crosvm_py.cli.grammar.command import Command
from crosvm_py.requests.devices import RestartDevice
from crosvm_py.requests.protocol import Done
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _restart_device(arguments: Arguments, _settings: GlobalSettings) -> int:
    device, path = arguments.positional
    ask_for(path, RestartDevice(device_name("restart-device", device)), Done)
    return 0


RESTART_DEVICE: Final = Command(
    "restart-device",
    "give a device a new process, with the code that is installed now",
    (),
    (DEVICE, SOCKET),
    _restart_device,
)
