# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm devices`` and ``crosvm limit``: the devices of a VM that runs."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional, switch
from crosvm_py.cli.output import write_out
from crosvm_py.cli.run_options.limits import FIELDS, given_limits
from crosvm_py.control import client
from crosvm_py.control.client import ControlError
from crosvm_py.control.devices import (
    MAX_NAME_CHARS,
    DeviceInfo,
    DeviceLimits,
    DeviceList,
    LimitDevice,
    ListDevices,
)
from sys_util.errors import UsageError
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

JSON: Final = switch("--json", "for programs: every queue and every counter")

_GAP: Final = "  "


def _devices(arguments: Arguments, _settings: GlobalSettings) -> int:
    (path,) = arguments.positional
    answer = client.ask(path, ListDevices())
    if not isinstance(answer, DeviceList):
        raise ControlError(f"{path}: an answer to something else")
    if arguments.has(JSON):
        import json

        text = json.dumps([as_fields(device) for device in answer.devices], indent=2)
    else:
        text = "\n".join(table(answer.devices))
    write_out(f"{text}\n")
    return 0


def as_fields(device: DeviceInfo) -> dict[str, object]:
    """Return a device as ``--json`` shows it."""
    return {
        "index": device.index,
        "name": device.name,
        "pid": device.pid,
        "state": device.state,
        "policy": device.policy,
        "cgroup": device.cgroup or None,
        "queues": [{"size": queue.size, "enabled": queue.enabled} for queue in device.queues],
        "counters": {counter.name: counter.value for counter in device.counters},
    }


def table(devices: Sequence[DeviceInfo]) -> list[str]:
    """Return the lines for people: the counters that every device has, and enabled queues."""
    common = _common_counters(devices)
    head = ["index", "name", "pid", "state", "policy", "queues", *common]
    rows = [[word.replace("_", "-").upper() for word in head]]
    for device in devices:
        counters = {counter.name: counter.value for counter in device.counters}
        enabled = sum(queue.enabled for queue in device.queues)
        facts = (device.name, device.pid, device.state, device.policy)
        row = [device.index, *facts, f"{enabled}/{len(device.queues)}"]
        rows.append([printable(str(cell)) for cell in (*row, *(counters[name] for name in common))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _common_counters(devices: Sequence[DeviceInfo]) -> list[str]:
    names = [[counter.name for counter in device.counters] for device in devices]
    return [name for name in names[0] if all(name in of for of in names)] if names else []


def _limit(arguments: Arguments, _settings: GlobalSettings) -> int:
    device, *changes, path = arguments.positional
    if len(device) > MAX_NAME_CHARS:
        raise UsageError(f"limit: {device:.80}: no device has such a name")
    values = given_limits("limit", changes[0]) if changes else (None,) * len(FIELDS)
    answer = client.ask(path, LimitDevice(device, values))
    if not isinstance(answer, DeviceLimits):
        raise ControlError(f"{path}: an answer to something else")
    pairs = zip(FIELDS, answer.values, strict=True)
    write_out(",".join(f"{field.name}={value}" for field, value in pairs) + "\n")
    return 0


DEVICES: Final = Command(
    "devices",
    "tell the devices of a VM: processes, states, queues, counters",
    (JSON,),
    Positional("SOCKET", "control socket of a VM (run --socket)"),
    _devices,
)
LIMIT: Final = Command(
    "limit",
    "change the rate limits of a device, such as block:0, and tell them",
    (),
    Positional(
        "DEVICE [KEY=VALUE,…] SOCKET", "device, limits as of run --rng, control socket", 2, 3
    ),
    _limit,
)
