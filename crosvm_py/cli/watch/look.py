# SPDX-License-Identifier: BSD-3-Clause
"""One look at a VM: what it answers, and what the kernel knows of its processes."""

from __future__ import annotations

import time

from crosvm_py.cli.watch.processes import age_seconds, find_processes, thread_seconds
from crosvm_py.control.socket_client import ControlError, Conversation
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.requests.vm import ListVcpus, QueryVm, VcpuList, VmFacts
from sys_util.typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from crosvm_py.cli.watch.processes import Process
    from crosvm_py.requests.devices import DeviceInfo
    from crosvm_py.requests.protocol import Request

A = TypeVar("A")


class Vcpu(NamedTuple):
    """One vCPU; ``cpu_seconds`` is ``None`` if its thread cannot be seen."""

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    thread_id: int
    exits: int
    cpu_seconds: float | None


class Look(NamedTuple):
    """A VM at one moment, ``at_seconds`` of the monotonic clock."""

    socket: str
    at_seconds: float
    pid: int
    age_seconds: float
    facts: VmFacts
    vcpus: tuple[Vcpu, ...]
    devices: tuple[DeviceInfo, ...]
    processes: tuple[Process, ...]

    @property
    def name(self) -> str:
        """The name of the VM, which is that of its vmm."""
        return self.processes[0].name if self.processes else ""

    def device_of(self, process: Process) -> DeviceInfo | None:
        """Return the device that a process serves."""
        return next((each for each in self.devices if each.pid == process.pid), None)


def look_at(path: str, timeout_seconds: float) -> Look:
    """Ask the VM at ``path``.

    Raises:
        ControlError: the VM refuses, or does not answer in time.
        HostError: nothing listens there.
    """
    with Conversation(path, timeout_seconds) as vm:
        facts = _answer(vm, path, QueryVm(), VmFacts)
        vcpus = _answer(vm, path, ListVcpus(), VcpuList).vcpus
        devices = _answer(vm, path, ListDevices(), DeviceList).devices
        pid = vm.pid
    at_seconds = time.monotonic()
    processes = find_processes(pid)
    return Look(
        path,
        at_seconds,
        pid,
        age_seconds(processes[0]) if processes else 0.0,
        facts,
        tuple(
            Vcpu(each.index, each.thread_id, each.exits, thread_seconds(pid, each.thread_id))
            for each in vcpus
        ),
        devices,
        processes,
    )


def _answer(vm: Conversation, path: str, request: Request, kind: type[A]) -> A:
    answer = vm.ask(request)
    if not isinstance(answer, kind):
        raise ControlError(f"{path}: an answer to another question")
    return answer
