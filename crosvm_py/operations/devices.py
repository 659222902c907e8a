# SPDX-License-Identifier: BSD-3-Clause
"""Answer requests about devices, or pass them to the devices."""

from __future__ import annotations

import time

from crosvm_py.kinds.net import is_link_up
from crosvm_py.operations.operation import operation
from crosvm_py.requests.devices import (
    MAX_CGROUP_CHARS,
    CounterInfo,
    DeviceInfo,
    DeviceList,
    LimitDevice,
    ListDevices,
    QueueInfo,
    RestartDevice,
)
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Done, Failed
from devices.virtio.commands import Obeyed, Refused, SetLimits
from devices.virtio.counters import engine_of, named, waiting_until
from devices.virtio.rate_limiter import LIMIT_NAMES
from sys_util.errors import ConfigError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from devices.virtio.commands import Command
    from sys_util.wire import Message


@operation(ListDevices)
def list_devices(vm: RunningVm, _request: ListDevices) -> DeviceList:
    """Return what the vmm knows of each device, without asking the devices."""
    slots = {} if vm.plugging is None else vm.plugging.slots
    devices = vm.supervisor.devices
    found = ((device, slots.get(device.device_id, 0)) for device in devices)
    return DeviceList(
        tuple(_info(device, slot, vm.machine.bar_gpa(slot)) for device, slot in found)
    )


def _info(device: DeviceProcess, slot: int, bar_gpa: int) -> DeviceInfo:
    status = device.status
    counters = named(device.cells, device.kind.counters) | {"restarts": status.restarts}
    return DeviceInfo(
        index=device.device_id,
        name=device.name,
        pid=device.pid,
        state=status.word,
        policy=device.kind.policy_name,
        queues=_queues(device),
        counters=tuple(CounterInfo(name, value) for name, value in counters.items()),
        cgroup=device.cgroup[:MAX_CGROUP_CHARS],
        link=("up" if is_link_up(device.config) else "down") if device.kind.is_card else "",
        slot=slot,
        bar_gpa=bar_gpa,
    )


def _queues(device: DeviceProcess) -> tuple[QueueInfo, ...]:
    cells = device.cells
    until, now_ns = waiting_until(cells), time.monotonic_ns()

    def info(at: int, size: int, *, enabled: bool) -> QueueInfo:
        if not enabled:
            return QueueInfo(size, enabled)
        return QueueInfo(size, enabled, wait_ms(until.get(at, 0) - now_ns), engine_of(cells, at))

    found = enumerate(device.status.queues(device.queue_sizes))
    return tuple(info(at, size, enabled=enabled) for at, (size, enabled) in found)


def wait_ms(ns: int) -> int:
    """Convert a wait of ``ns`` to milliseconds, rounded up; 0 if it is negative."""
    return max(0, -(-ns // 1_000_000))


def find_device(devices: Iterable[DeviceProcess], name: str) -> DeviceProcess:
    """Return the device with this name; ``block`` is the same as ``block:0``.

    Raises:
        ConfigError: there is no such device; the message lists those that there are.
    """
    known = {device.name: device for device in devices}
    device = known.get(name) or known.get(f"{name}:0")
    if device is None:
        names = ", ".join(known) or "none at all"
        raise ConfigError(f"this VM has no device {brief(name)} (it has {names})")
    return device


@operation(RestartDevice)
def restart_device(vm: RunningVm, request: RestartDevice) -> Pending:
    """Give a device a new process; the answer comes when that process serves the device.

    Raises:
        ConfigError: there is no such device, or it cannot be restarted now.
    """
    device = find_device(vm.supervisor.devices, request.device)
    pending = Pending()

    def answer(reason: str) -> None:
        pending.complete(Failed(reason[:MAX_REASON_CHARS]) if reason else Done())

    try:
        vm.supervisor.restart(device, answer)
    except ConfigError as error:
        raise ConfigError(f"{device.name}: {error}") from None
    return pending


@operation(LimitDevice)
def limit_device(vm: RunningVm, request: LimitDevice) -> Pending:
    """Change some rate limits of a device; the answer contains all of them.

    Raises:
        ConfigError: there is no such device, or the request names other limits than ours.
    """
    if len(request.values) != len(LIMIT_NAMES):
        raise ConfigError(f"{len(request.values)} limits instead of {len(LIMIT_NAMES)}")
    device = find_device(vm.supervisor.devices, request.device)
    return ask_device(device, SetLimits(request.values))


def ask_device(device: DeviceProcess, command: Command) -> Pending:
    """Have a device carry out a command; the returned ``Pending`` gets its answer."""
    pending = Pending()
    device.command(command, lambda answer: pending.complete(response(device, answer)))
    return pending


def response(device: DeviceProcess, answer: Message) -> Response:
    """Turn a device's answer into the response for the client."""
    match answer:
        case Refused(reason):
            return Failed(f"{device.name}: {reason}"[:MAX_REASON_CHARS])
        case Obeyed():
            return Done()
    return answer
