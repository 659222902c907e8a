# SPDX-License-Identifier: BSD-3-Clause
"""Answer what the whole VM is like, and send it a non-maskable interrupt."""

from __future__ import annotations

from crosvm_py.operations.operation import operation
from crosvm_py.requests.protocol import Done
from crosvm_py.requests.vm import (
    RUNNING,
    SUSPENDED,
    InjectNmi,
    ListVcpus,
    PortPty,
    QueryVm,
    VcpuFigures,
    VcpuList,
    VmFacts,
)
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm


@operation(QueryVm)
def query_vm(vm: RunningVm, _request: QueryVm) -> VmFacts:
    """Return the state of the VM."""
    state = SUSPENDED if vm.suspension.is_suspended else RUNNING
    hotplug = vm.machine.cpu_hotplug
    cpus = vm.vcpus.count if hotplug is None else hotplug.count
    ptys = tuple(PortPty(place, path) for place, path in vm.machine.ptys)
    return VmFacts(state, cpus, vm.machine.memory_bytes, ptys)


@operation(ListVcpus)
def list_vcpus(vm: RunningVm, _request: ListVcpus) -> VcpuList:
    """Return the thread and the exits of each vCPU that the guest has, without stopping any."""
    threads = vm.vcpus.thread_ids
    exits = vm.vcpus.exits
    present = sorted(exits.keys() - vm.vcpus.absent)
    return VcpuList(tuple(VcpuFigures(at, threads.get(at, 0), exits[at]) for at in present))


@operation(InjectNmi)
def inject_nmi(vm: RunningVm, _request: InjectNmi) -> Done:
    """Send every vCPU a non-maskable interrupt; one that is suspended gets it when it goes on."""
    vm.machine.inject_nmi()
    return Done()
