# SPDX-License-Identifier: BSD-3-Clause
"""Turn a KVM exit that ends the VM into its exit status and a line for people."""

from __future__ import annotations

from crosvm_py.exit_status import VmExit
from kvm.limits import NO_VIRTUALIZATION
from kvm.run_page import (
    EXIT_NAMES,
    INTERNAL_ERROR_NAMES,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
)
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from kvm.run_page import RunPage

_SYSTEM_EVENTS: Final = {
    KVM_SYSTEM_EVENT_SHUTDOWN: (VmExit.STOPPED, "the guest powered off"),
    KVM_SYSTEM_EVENT_RESET: (VmExit.RESET, "the guest asked for a reset"),
    KVM_SYSTEM_EVENT_CRASH: (VmExit.GUEST_PANIC, "the guest reported a crash"),
}


class VmExitReason(NamedTuple):
    """How the VM ends, and why in one line."""

    kind: VmExit
    text: str


class StoppedVcpu(Protocol):
    """The part of a ``Vcpu`` that tells where it stopped."""

    @property
    def index(self) -> int:
        """Its number."""
        ...

    def instruction_pointer(self) -> int:
        """Return the guest's virtual address of the next instruction."""
        ...


def ended_by_exit(
    vcpu: StoppedVcpu, page: RunPage, exit_reason: int, *, hardware_virtualization: bool
) -> VmExitReason:
    """Return how the VM ends after an exit from which the vCPU cannot go on."""
    who = f"vCPU {vcpu.index}"
    if exit_reason == KVM_EXIT_SHUTDOWN:
        return VmExitReason(VmExit.RESET, f"{who}: triple fault, which resets a PC")
    if exit_reason == KVM_EXIT_SYSTEM_EVENT:
        event = page.system_event()
        kind, text = _SYSTEM_EVENTS.get(event, (VmExit.CRASH, f"unknown system event {event}"))
        return VmExitReason(kind, f"{who}: {text}")
    if exit_reason == KVM_EXIT_FAIL_ENTRY:
        reason = page.hardware_reason()
        text = f"the processor refused to enter the guest, reason {reason:#x}"
    elif exit_reason == KVM_EXIT_INTERNAL_ERROR:
        text = _describe_internal_error(vcpu, page)
        if not hardware_virtualization:
            text = f"{text}; {NO_VIRTUALIZATION}"
    else:
        name = EXIT_NAMES.get(exit_reason, "KVM exit")
        text = f"unexpected {name} ({exit_reason}), hardware reason {page.hardware_reason():#x}"
    return VmExitReason(VmExit.CRASH, f"{who}: {text}")


def _describe_internal_error(vcpu: StoppedVcpu, page: RunPage) -> str:
    suberror, data = page.internal_error()
    at = vcpu.instruction_pointer()
    if suberror == KVM_INTERNAL_ERROR_EMULATION:
        instruction = page.instruction().hex(" ") or "not known"
        return f"KVM cannot emulate the instruction at {at:#x}, bytes {instruction}"
    name = INTERNAL_ERROR_NAMES.get(suberror, "unknown suberror")
    words = " ".join(f"{word:#x}" for word in data)
    return f"KVM internal error {suberror} ({name}) at {at:#x}, data {words or 'none'}"
