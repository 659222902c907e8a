# SPDX-License-Identifier: BSD-3-Clause
"""The plan of ``crosvm run --dry-run`` as text for people."""

from __future__ import annotations

from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crosvm_py.run_plan import Port, RunPlan

_WIDTH: Final = 79
_COLUMN: Final = 12
_UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def as_text(plan: RunPlan) -> str:
    """Return the plan as lines for a terminal, without control characters."""
    lines = [*_guest(plan), "", *_devices(plan), *_policies(plan), *_jails(plan)]
    lines += ["", "Nothing was started, and nothing is left behind."]
    return "\n".join(lines) + "\n"


def _guest(plan: RunPlan) -> Iterator[str]:
    kernel = plan.kernel
    yield from _entry("kernel", f"{kernel.path} ({kernel.format})")
    yield from _entry("", f"starts at {kernel.entry:#x} by {kernel.protocol}")
    yield from _entry("parameters", kernel.parameters)
    if plan.initrd is not None:
        initrd = plan.initrd
        yield from _entry("initrd", f"{initrd.path}, {_size(initrd.size_bytes)} at {initrd.gpa:#x}")
    yield from _entry("vCPUs", str(plan.vcpus))
    yield from _entry("memory", _size(plan.memory.size_bytes))
    for gpa, size_bytes, kind in plan.memory.map:
        end = gpa + size_bytes - 1
        yield from _entry("", f"{gpa:#014x}-{end:#014x} {kind:8} {_size(size_bytes):>12}")
    for port in plan.serial:
        if port.type != "sink":
            yield from _entry("serial", _port(port))
    yield from _entry("sockets", ", ".join(_sockets(plan)) or "none")
    yield from _entry("cgroup", plan.cgroup or "none: devices have resource limits alone")
    yield from _entry("sandbox", "on" if plan.sandbox else "OFF: devices run without walls")


def _port(port: Port) -> str:
    words = [f"{port.place}: {port.type}"]
    words += [port.path] if port.path else []
    words += [f"input {port.input}"] if port.input else []
    words += [f"name {port.name}"] if port.name else []
    words += [name for name in ("console", "earlycon", "stdin") if getattr(port, name)]
    return ", ".join(words)


def _sockets(plan: RunPlan) -> Iterator[str]:
    if plan.sockets.control is not None:
        yield f"{plan.sockets.control} (control)"
    for path in plan.sockets.vsock:
        yield f"{path} (vsock)"


def _devices(plan: RunPlan) -> list[str]:
    head = ["SLOT", "DEVICE", "KIND", "POLICY", "QUEUES", "SOURCE"]
    rows = [
        [f"{each.slot}", each.name, each.kind, each.policy, _queues(each.queues), each.source]
        for each in plan.devices
    ]
    lines = _table([head, *rows])
    for each in plan.devices:
        limits = [f"{name}={value}" for name, value in each.rate_limits.items()]
        if limits:
            lines += _wrap(f"{each.name}: {', '.join(limits)}", _WIDTH)
        if each.memory_limit_bytes is not None:
            limit = f"{_size(each.memory_limit_bytes)} of memory, {each.processes_limit} processes"
            lines.append(f"{each.name}: at most {limit}")
    return lines


def _queues(sizes: Sequence[int]) -> str:
    """Return ``4 x 256`` for four queues of that size; a list of these for different sizes."""
    counts: dict[int, int] = {}
    for size in sizes:
        counts[size] = counts.get(size, 0) + 1
    return ", ".join(f"{count} x {size}" for size, count in counts.items())


def _policies(plan: RunPlan) -> list[str]:
    if not plan.policies:
        return []
    rows = [[each.name, f"{each.allows}", ", ".join(each.used_by)] for each in plan.policies]
    return ["", *_table([["POLICY", "CALLS", "USED BY"], *rows])]


def _jails(plan: RunPlan) -> Iterator[str]:
    """Return every step of the first jail, and the steps of the others that differ from it."""
    jailed = [device for device in plan.devices if device.jail]
    for device in jailed:
        first = jailed[0]
        if device is first:
            yield from ("", f"Jail of {device.name}:")
        else:
            yield from ("", f"Jail of {device.name}, otherwise like that of {first.name}:")
        known = () if device is first else first.jail
        for number, step in enumerate(device.jail):
            if step not in known[number : number + 1]:
                yield from _step(number + 1, step)


def _step(number: int, step: str) -> Iterator[str]:
    first, *more = _wrap(step, _WIDTH - 5)
    yield f"  {number:2} {first}"
    yield from (f"     {row}" for row in more)


def _entry(term: str, text: str) -> Iterator[str]:
    first, *more = _wrap(text, _WIDTH - _COLUMN)
    yield term.ljust(_COLUMN) + first
    yield from (" " * _COLUMN + row for row in more)


def _wrap(text: str, width: int) -> list[str]:
    """Return rows of whole words; blanks inside a row stay as they are."""
    rows = [""]
    for word in printable(text).split(" "):
        longer = f"{rows[-1]} {word}" if rows[-1] else word
        if len(longer) > width and rows[-1]:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _size(size_bytes: int) -> str:
    """Return a size in the largest unit in which it is a whole number."""
    for unit, name in _UNITS:
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} bytes"
