# SPDX-License-Identifier: BSD-3-Clause
"""Calls that change what the whole VM does: pause, resume, end, power button, NMI."""

from __future__ import annotations

from crosvm_py.api import http
from crosvm_py.api.errors import NO_CONTENT, ApiError
from crosvm_py.requests.life import PowerButton, Reboot, Resume, Stop, Suspend
from crosvm_py.requests.protocol import Done
from crosvm_py.requests.vm import RUNNING, SUSPENDED, InjectNmi
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm


def pause(vm: ApiVm, _call: Call) -> Steps:
    """Hold the VM still."""
    facts = yield from vm.booted()
    if facts.state == SUSPENDED:
        raise ApiError(500, "Invalid transition from Paused to Paused")
    yield from vm.demand(Suspend(), Done)
    return NO_CONTENT


def resume(vm: ApiVm, _call: Call) -> Steps:
    """Let a paused VM go on."""
    facts = yield from vm.booted()
    if facts.state == RUNNING:
        raise ApiError(500, "Invalid transition from Running to Running")
    yield from vm.demand(Resume(), Done)
    return NO_CONTENT


def press_power_button(vm: ApiVm, _call: Call) -> Steps:
    """Ask the guest to shut down."""
    yield from vm.booted()
    yield from vm.demand(PowerButton(), Done)
    return NO_CONTENT


def inject_nmi(vm: ApiVm, _call: Call) -> Steps:
    """Send every vCPU a non-maskable interrupt."""
    yield from vm.booted()
    yield from vm.demand(InjectNmi(), Done)
    return NO_CONTENT


def end_vmm(vm: ApiVm, _call: Call) -> Steps:
    """End the VM and the vmm."""
    yield from vm.demand(Stop(), Done)
    return http.answer(200, b"")


def shut_down(vm: ApiVm, _call: Call) -> Steps:
    """End the VM."""
    yield from vm.booted()
    yield from vm.demand(Stop(), Done)
    return NO_CONTENT


def delete(vm: ApiVm, _call: Call) -> Steps:
    """End the VM and forget its configuration."""
    yield from vm.demand(Stop(), Done)
    vm.keep(None)
    return NO_CONTENT


def reboot(vm: ApiVm, _call: Call) -> Steps:
    """Reset the machine and boot the guest again. A VM that is paused runs then."""
    facts = yield from vm.facts()
    if vm.config is None or not facts.memory_bytes:
        yield vm.ask(Reboot())  # for the event alone
        raise ApiError(404, "VM is not created" if vm.config is None else "VM is not booted")
    yield from vm.demand(Reboot(), Done)
    return NO_CONTENT
