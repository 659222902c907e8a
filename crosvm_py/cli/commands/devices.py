# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm devices``: list the devices of a running VM."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import SOCKET, ask_for
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import switch
from crosvm_py.cli.output import write_out
from crosvm_py.requests.devices import DeviceList, ListDevices
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.requests.devices import DeviceInfo

JSON: Final = switch("--json", "print JSON for programs, with every queue and every counter")

_GAP: Final = "  "


def _devices(arguments: Arguments, _settings: GlobalSettings) -> int:
    (path,) = arguments.positional
    answer = ask_for(path, ListDevices(), DeviceList)
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
        "link": device.link or None,
        "queues": [
            {
                "size": queue.size,
                "enabled": queue.enabled,
                "engine": queue.engine or None,
                "limit_wait_ms": queue.limit_wait_ms or None,
            }
            for queue in device.queues
        ],
        "counters": {counter.name: counter.value for counter in device.counters},
    }


def table(devices: Sequence[DeviceInfo]) -> list[str]:
    """Return the table for people, with the counters that all devices have.

    ``QUEUES`` are enabled queues and all queues. ``ENGINE`` is what serves the enabled ones:
    native code or Python in the device's process, or the host's kernel (vhost). ``LIMIT`` is how
    long a queue of the device still has to wait because of a rate limit. ``LINK``, where there is
    a network card, is what it shows the guest.
    """
    common = _common_counters(devices)
    links = ["link"] if any(device.link for device in devices) else []
    head = ["index", "name", "pid", "state", *links, "policy", "queues", "engine", "limit", *common]
    rows = [[word.replace("_", "-").upper() for word in head]]
    for device in devices:
        counters = {counter.name: counter.value for counter in device.counters}
        enabled = sum(queue.enabled for queue in device.queues)
        links = [device.link or "-"] if "LINK" in rows[0] else []
        facts = (device.name, device.pid, device.state, *links, device.policy)
        queues = (f"{enabled}/{len(device.queues)}", _engines(device), _longest_wait(device))
        row = [device.index, *facts, *queues]
        rows.append([printable(str(cell)) for cell in (*row, *(counters[name] for name in common))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _engines(device: DeviceInfo) -> str:
    return "+".join(sorted({queue.engine for queue in device.queues if queue.engine})) or "-"


def _longest_wait(device: DeviceInfo) -> str:
    wait_ms = max((queue.limit_wait_ms for queue in device.queues), default=0)
    return f"{wait_ms / 1000:.1f}s" if wait_ms else "-"


def _common_counters(devices: Sequence[DeviceInfo]) -> list[str]:
    names = [[counter.name for counter in device.counters] for device in devices]
    return [name for name in names[0] if all(name in of for of in names)] if names else []


DEVICES: Final = Command(
    "devices",
    "list the devices of a VM: processes, states, queues, counters",
    (JSON,),
    (SOCKET,),
    _devices,
)
