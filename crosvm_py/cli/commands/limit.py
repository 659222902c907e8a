# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm limit``: show and change the rate limits of a device of a running VM."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import DEVICE, SOCKET, ask_for, device_name
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.output import write_out
from crosvm_py.cli.run_options.limits import FIELDS, given_limits
from crosvm_py.requests.devices import LimitDevice
from devices.virtio.commands import DeviceLimits
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _limit(arguments: Arguments, _settings: GlobalSettings) -> int:
    device, *changes, path = arguments.positional
    values = given_limits("limit", changes[0]) if changes else (None,) * len(FIELDS)
    answer = ask_for(path, LimitDevice(device_name("limit", device), values), DeviceLimits)
    pairs = zip(FIELDS, answer.values, strict=True)
    write_out(",".join(f"{field.name}={value}" for field, value in pairs) + "\n")
    return 0


LIMIT: Final = Command(
    "limit",
    "change the rate limits of a device, and print them",
    (),
    (
        DEVICE,
        Positional(
            "KEY=VALUE,…",
            f"limits to change: {', '.join(field.name for field in FIELDS)}, as for crosvm run "
            "--rng; 0 lifts one. Without this only the limits are printed",
            0,
        ),
        SOCKET,
    ),
    _limit,
)
