# SPDX-License-Identifier: BSD-3-Clause
"""Change the number of vCPUs and the sizes of memory and balloon, without waiting for the guest."""

from __future__ import annotations

from crosvm_py.operations.balloon import ask_balloon, find_balloon
from crosvm_py.operations.operation import operation
from crosvm_py.requests.balloon import PAGE_BYTES
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Failed
from crosvm_py.requests.resize import Resize, Resized
from devices.virtio.commands import SetTarget
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.protocol import Response


@operation(Resize)
def resize(vm: RunningVm, request: Resize) -> Resized | Pending:
    """Check every part of the request, then change all of them.

    Raises:
        ConfigError: a part is impossible; nothing was changed.
    """
    if request.cpus is not None and _is_busy_for(vm, request.cpus):
        return Resized(is_busy=True)
    growth = vm.machine.growth
    size_bytes = vm.machine.memory_bytes
    if request.memory_bytes not in (None, size_bytes):
        if growth is None:
            raise ConfigError(
                "the memory of this VM has one size (crosvm run --mem SIZE,max=SIZE lets it grow)"
            )
        growth.check(request.memory_bytes)
        size_bytes = max(size_bytes, request.memory_bytes)
    if request.balloon_bytes is not None:
        find_balloon(vm)
        if request.balloon_bytes > size_bytes:
            raise ConfigError("the balloon would be larger than the memory")
    if growth is not None and request.memory_bytes is not None:
        growth.resize(request.memory_bytes)
    if request.cpus is not None and vm.machine.cpu_hotplug is not None:
        vm.machine.cpu_hotplug.resize(request.cpus)
    if request.balloon_bytes is None:
        return Resized(is_busy=False)
    return _resize_balloon(vm, request.balloon_bytes)


def _is_busy_for(vm: RunningVm, cpus: int) -> bool:
    """Return whether an earlier request must be carried out before there can be so few vCPUs.

    Raises:
        ConfigError: there can never be so many, or so few.
    """
    hotplug = vm.machine.cpu_hotplug
    if hotplug is not None:
        return hotplug.is_busy_for(cpus)
    if cpus != vm.vcpus.count:
        present = vm.vcpus.count
        raise ConfigError(
            f"there are {present} vCPUs, and no other can come or go (--cpus N,max=M)"
        )
    return False


def _resize_balloon(vm: RunningVm, size_bytes: int) -> Pending:
    resized = Pending()

    def answer(response: Response) -> None:
        resized.complete(response if isinstance(response, Failed) else Resized(is_busy=False))

    ask_balloon(vm, SetTarget(size_bytes // PAGE_BYTES)).deliver_to(answer)
    return resized
