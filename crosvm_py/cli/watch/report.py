# SPDX-License-Identifier: BSD-3-Clause
"""A look at a VM as lines for people and as fields for programs.

A VM that a guest has taken over decides what it answers: its texts are cut and escaped here.
"""

from __future__ import annotations

from crosvm_py.cli.watch.amounts import count, duration, size, word
from crosvm_py.cli.watch.rates import counters_of
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.cli.watch.look import Look, Vcpu
    from crosvm_py.cli.watch.processes import Process
    from crosvm_py.cli.watch.rates import Rates
    from crosvm_py.requests.devices import DeviceInfo

# TO-GUEST and FROM-GUEST are bytes of requests each second, REQUESTS and EXITS are numbers of them.
HEAD: Final = (
    *("NAME", "PID", "CPU%", "MEMORY", "SHARED"),
    *("REQUESTS/S", "TO-GUEST/S", "FROM-GUEST/S", "EXITS/S", "STATE"),
)
_NAME_CHARS: Final = 18
_LEFT: Final = ("NAME", "STATE")
_MAX_ROWS: Final = 1024


def title(look: Look) -> str:
    """Return one line about the whole VM."""
    facts = look.facts
    vcpus = f"{facts.cpus} vCPU{'s' * (facts.cpus != 1)}"
    return (
        f"{word(look.name) or 'VM'} ({word(look.socket, 64)}): {facts.state} for "
        f"{duration(look.age_seconds)}, {vcpus}, {size(facts.memory_bytes)} of memory"
    )


def table(look: Look, rates: Rates) -> list[str]:
    """Return a line for each process and vCPU under the heads of the columns."""
    rows: list[tuple[str, ...]] = [HEAD]
    for process in look.processes:
        rows.append(_process_row(look, process, rates))
        if process.pid == look.pid:
            rows += [_vcpu_row(vcpu, rates) for vcpu in look.vcpus]
    seen = {process.pid for process in look.processes}
    rows += [_lost_row(device, rates) for device in look.devices if device.pid not in seen]
    return _aligned(rows[:_MAX_ROWS])


def _process_row(look: Look, process: Process, rates: Rates) -> tuple[str, ...]:
    device = look.device_of(process)
    is_vmm = process.pid == look.pid
    name = "vmm" if is_vmm else word(process.name if device is None else device.name, _NAME_CHARS)
    busy = rates.processes.get(process.pid)
    memory = (size(process.private_bytes), size(process.shared_bytes))
    return (name, str(process.pid), _percent(busy), *memory, *_device_cells(device, rates))


def _device_cells(device: DeviceInfo | None, rates: Rates) -> tuple[str, ...]:
    if device is None:
        return ("-", "-", "-", "-", "")
    done = rates.devices.get(device.name)
    cells = (
        ("-", "-", "-")
        if done is None
        else (count(done.requests), size(done.bytes_to_guest), size(done.bytes_from_guest))
    )
    restarts = counters_of(device).get("restarts", 0)
    state = word(device.state) + (f", {count(restarts)} restarts" if restarts else "")
    return (*cells, "-", state)


def _vcpu_row(vcpu: Vcpu, rates: Rates) -> tuple[str, ...]:
    busy, exits = rates.vcpu_seconds.get(vcpu.index), rates.exits.get(vcpu.index)
    shown = "-" if exits is None else count(exits)
    name = f"  vcpu{vcpu.index}"
    return (name, str(vcpu.thread_id), _percent(busy), *("-",) * 5, shown, "")


def _lost_row(device: DeviceInfo, rates: Rates) -> tuple[str, ...]:
    """Return the row of a device whose process is not one of the VM's, or is not there."""
    name = word(device.name, _NAME_CHARS)
    return (name, "-", "-", "-", "-", *_device_cells(device, rates))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{min(100 * share, 99999):.1f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if head in _LEFT else cell.rjust(width)
            for head, cell, width in zip(HEAD, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def fields(look: Look, rates: Rates | None = None) -> dict[str, object]:
    """Return everything for ``--json``; with ``rates`` also what happened each second."""
    facts = look.facts
    return {
        "socket": look.socket,
        "name": look.name or None,
        "pid": look.pid,
        "state": facts.state,
        "age_seconds": round(look.age_seconds, 3),
        "cpus": facts.cpus,
        "memory_bytes": facts.memory_bytes,
        "vcpus": [_vcpu_fields(vcpu, rates) for vcpu in look.vcpus],
        "processes": [_process_fields(process, rates) for process in look.processes],
        "devices": [_device_fields(device, rates) for device in look.devices],
    }


def _vcpu_fields(vcpu: Vcpu, rates: Rates | None) -> dict[str, object]:
    found: dict[str, object] = {
        "index": vcpu.index,
        "thread_id": vcpu.thread_id,
        "cpu_seconds": vcpu.cpu_seconds,
        "exits": vcpu.exits,
    }
    if rates is not None:
        found["cpu_share"] = rates.vcpu_seconds.get(vcpu.index)
        found["exits_per_second"] = rates.exits.get(vcpu.index)
    return found


def _process_fields(process: Process, rates: Rates | None) -> dict[str, object]:
    found = process._asdict()
    del found["began"]
    if rates is not None:
        found["cpu_share"] = rates.processes.get(process.pid)
    return found


def _device_fields(device: DeviceInfo, rates: Rates | None) -> dict[str, object]:
    found: dict[str, object] = {
        "name": device.name,
        "pid": device.pid,
        "slot": device.slot or None,
        "state": device.state,
        "counters": counters_of(device),
    }
    if rates is not None:
        done = rates.devices.get(device.name)
        found["per_second"] = None if done is None else done._asdict()
    return found
