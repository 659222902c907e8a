# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm debug dump``: which side waits, for every queue and every vCPU of a running VM.

The data comes from the VM and from /proc. There anybody can read the state of a thread: if a vCPU's
thread sleeps in KVM_RUN, the vCPU has halted; if it runs there, it runs guest code.
"""

from __future__ import annotations

import os

from crosvm_py.cli.commands.asking import SOCKET, ask_for
from crosvm_py.cli.commands.debug_memory import memory_line, read_memory
from crosvm_py.cli.commands.debug_verdicts import EVENT_IDX, verdict
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import switch
from crosvm_py.cli.output import write_out
from crosvm_py.requests.debug import DeviceDump, DumpDevice, DumpVm, VmDump
from crosvm_py.requests.devices import DeviceList, ListDevices
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.requests.debug import QueueDump, VcpuPlace
    from devices.virtio.backend import QueuePosition

JSON: Final = switch("--json", "print JSON for programs")

_STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for the host, not to be interrupted",
    "T": "stopped",
    "t": "traced",
    "Z": "ended",
}
_SLEEPS: Final = "sleeps in KVM: halted, or not started by the guest yet"
_NO_VECTOR: Final = 0xFFFF


class Task(NamedTuple):
    """A thread in /proc: its state, as a letter of proc(5), and its processor time."""

    state: str
    cpu_seconds: float


def read_task(pid: int, thread_id: int) -> Task | None:
    """Read a thread's state from /proc; return ``None`` if it is not there."""
    try:
        with open(f"/proc/{pid}/task/{thread_id}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return Task(fields[0].decode("ascii"), ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def _dump(arguments: Arguments, _settings: GlobalSettings) -> int:
    (path,) = arguments.positional
    vm = ask_for(path, DumpVm(), VmDump)
    names = [device.name for device in ask_for(path, ListDevices(), DeviceList).devices]
    devices = [ask_for(path, DumpDevice(name), DeviceDump) for name in names]
    if arguments.has(JSON):
        import json

        fields = as_fields(vm, devices, read_task)
        fields["memory"] = _named(read_memory(vm.pid)) or None
        text = json.dumps(fields, indent=2)
    else:
        first, *others = as_lines(vm, devices, read_task)
        lines = (first, memory_line(read_memory(vm.pid)), *others)
        text = "\n".join(printable(line) for line in lines)
    write_out(f"{text}\n")
    return 0


def as_fields(
    vm: VmDump, devices: Sequence[DeviceDump], read: Callable[[int, int], Task | None]
) -> dict[str, object]:
    """Return the dump as ``--json`` shows it."""
    return {
        "pid": vm.pid,
        "vcpus": [
            _named(vcpu) | {"task": _named(read(vm.pid, vcpu.thread_id)) or None}
            for vcpu in vm.vcpus
        ],
        "devices": [_device_fields(device, read) for device in devices],
    }


def _device_fields(
    device: DeviceDump, read: Callable[[int, int], Task | None]
) -> dict[str, object]:
    transport = _named(device.transport)
    transport.pop("queues", None)  # the key "queues" below has them
    words = device.words
    process = {"held": list(words.held), "timer_ms": words.timer_ms} if words else None
    queues = [
        {"index": index, "verdict": verdict(device, index)}
        | _named(queue)
        | {"device": _named(position(device, index)) or None}
        for index, queue in enumerate(device.queues)
    ]
    return {
        "name": device.name,
        "pid": device.pid,
        "state": device.state,
        "task": _named(read(device.pid, device.pid)) or None,
        "alive": device.alive,
        "silent_ms": device.silent_ms,
        "unanswered": device.unanswered,
        "oldest_ms": device.oldest_ms,
        "process": process,
        "transport": transport or None,
        "queues": queues,
    }


def _named(value: object) -> dict[str, object]:
    """Turn a named tuple, and those in it, into dictionaries; ``None`` becomes an empty one."""
    names: tuple[str, ...] = getattr(value, "_fields", ())
    fields: dict[str, object] = {}
    for name in names:
        field = getattr(value, name)
        if isinstance(field, tuple):
            named = hasattr(field, "_fields")
            fields[name] = _named(field) if named else [_named(item) for item in field]
        else:
            fields[name] = field
    return fields


def position(device: DeviceDump, index: int) -> QueuePosition | None:
    """Return what the device process reported of queue ``index``, if anything."""
    queues = () if device.words is None else device.words.queues
    return next((queue for queue in queues if queue.index == index), None)


def as_lines(
    vm: VmDump, devices: Sequence[DeviceDump], read: Callable[[int, int], Task | None]
) -> list[str]:
    """Return the dump for people."""
    lines = [f"vmm (pid {vm.pid})"]
    lines += [_vcpu_line(vcpu, read(vm.pid, vcpu.thread_id)) for vcpu in vm.vcpus]
    for device in devices:
        lines += _device_lines(device, read(device.pid, device.pid))
    return lines


def _vcpu_line(vcpu: VcpuPlace, task: Task | None) -> str:
    place = {
        "guest": "in the guest",
        "exit": f"outside the guest: {vcpu.where}",
        "held": f"held: {vcpu.where}",
        "spare": "the guest does not have it now",
        "ended": "its thread has ended",
    }.get(vcpu.place, vcpu.place)
    if vcpu.place == "guest" and task is not None:
        place = {"S": _SLEEPS, "R": "runs guest code"}.get(task.state, place)
    return f"  vcpu {vcpu.index} (thread {vcpu.thread_id}): {place}{_task_text(task)}"


def _task_text(task: Task | None) -> str:
    if task is None:
        return ""
    state = _STATES.get(task.state, task.state)
    return f"; {state}, {task.cpu_seconds:.2f} s of processor time"


def _device_lines(device: DeviceDump, task: Task | None) -> list[str]:
    lines = [f"{device.name} (pid {device.pid}): {device.state}{_task_text(task)}"]
    lines.append(f"  process: {_process_text(device)}")
    transport = device.transport
    if transport is None:
        return lines
    interrupts = (
        f"MSI-X {'on' if transport.msix_enabled else 'off'}"
        f"{', all vectors masked' if transport.function_masked else ''}, "
        f"ISR {transport.isr:#x}, INTx {'up' if transport.intx_asserted else 'down'}"
        f"{' and signalled' if transport.intx_signalled else ''}"
    )
    lines.append(
        f"  driver: status {transport.status:#x}, features {transport.driver_features:#x}, "
        f"bus master {'on' if transport.bus_master else 'off'}; {interrupts}"
    )
    if transport.config_vector != _NO_VECTOR:
        lines.append(f"  configuration:{_vector_text(device, transport.config_vector)}")
    for index, queue in enumerate(device.queues):
        if queue.transport.enabled:
            lines += _queue_lines(device, index, queue)
    return lines


def _process_text(device: DeviceDump) -> str:
    if not device.alive:
        return "none now"
    text = f"heard {device.silent_ms / 1000:.1f} s ago"
    if device.unanswered:
        waiting = f"the oldest for {device.oldest_ms / 1000:.1f} s"
        text += f", {device.unanswered} requests unanswered, {waiting}"
    words = device.words
    if words is None:
        return f"{text}, tells nothing of itself"
    if words.held:
        text += f", serves no events ({', '.join(words.held)})"
    if words.timer_ms is not None:
        text += f", next timer in {words.timer_ms / 1000:.1f} s"
    return text


def _queue_lines(device: DeviceDump, index: int, queue: QueueDump) -> list[str]:
    at, transport = position(device, index), queue.transport
    lines = [f"  queue {index} of {transport.size}: {verdict(device, index)}"]
    if queue.ring is not None:
        ring = queue.ring
        lines.append(
            f"    memory: avail idx {ring.avail_idx} flags {ring.avail_flags:#x}, "
            f"used idx {ring.used_idx} flags {ring.used_flags:#x}{_events_text(device, queue)}"
        )
    if at is not None:
        lines.append(f"    {at.server}: {_position_text(at)}")
    kicks = [
        word
        for word, is_so in (
            ("kick pending", transport.kicked),
            ("kick held back", transport.kick_held),
            ("kicks pass the monitor", not transport.direct),
        )
        if is_so
    ]
    kick_text = ", ".join(kicks) or "no kick pending"
    lines.append(f"    signals: {kick_text};{_interrupt_text(device, queue)}")
    return lines


def _events_text(device: DeviceDump, queue: QueueDump) -> str:
    features = 0 if device.transport is None else device.transport.driver_features
    if queue.ring is None or not features >> EVENT_IDX & 1:
        return ""
    return f", events: avail {queue.ring.avail_event}, used {queue.ring.used_event}"


def _position_text(at: QueuePosition) -> str:
    if at.ring is None:
        return "knows no position"
    ring = at.ring
    text = (
        f"avail seen {ring.seen_avail} taken {ring.next_avail}, "
        f"used {ring.next_used} shown {ring.published} signalled {ring.signalled}"
    )
    return f"{text}{', idle' if ring.idle else ''}{', has more' * at.has_more}"


def _interrupt_text(device: DeviceDump, queue: QueueDump) -> str:
    if queue.transport.uses_intx:
        return " interrupts by INTx"
    return _vector_text(device, queue.transport.vector)


def _vector_text(device: DeviceDump, number: int) -> str:
    vectors = () if device.transport is None else device.transport.vectors
    if number >= len(vectors):
        return " no vector"
    vector = vectors[number]
    words = [
        word
        for word, is_so in (
            ("masked", vector.masked),
            ("not delivered by KVM", not vector.attached),
            ("signalled", vector.signalled),
        )
        if is_so
    ]
    return f" vector {number} {', '.join(words) or 'ready'}"


DUMP: Final = Command(
    "debug dump",
    "tell which side waits: vCPUs, rings, kicks and interrupts of every device",
    (JSON,),
    (SOCKET,),
    _dump,
)
