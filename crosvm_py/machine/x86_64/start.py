# SPDX-License-Identifier: BSD-3-Clause
"""The start of a machine: what KVM has of it before the guest runs, to be put back at a reset."""

from __future__ import annotations

from kvm.x86_state import SavedChips, SavedVcpu, listed_msrs
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvm.vm import Kvm
    from kvm.x86_64 import X86Vcpu, X86Vm


class MachineStart:
    """Chips, vCPUs and clocks as they are when the guest starts."""

    def __init__(self, kvm: Kvm, vm: X86Vm, vcpus: Sequence[X86Vcpu]) -> None:
        """Take the state of a machine that is ready to run.

        Raises:
            HostError: KVM does not tell it.
        """
        self._vm = vm
        self._vcpus = tuple(vcpus)
        msrs = listed_msrs(kvm)
        first = SavedVcpu(self._vcpus[0], msrs)
        self._saved = [first, *(SavedVcpu(vcpu, msrs, first) for vcpu in self._vcpus[1:])]
        self._chips = SavedChips(vm)

    def restore(self) -> None:
        """Put the state back and start the clocks anew; every vCPU is paused.

        Afterwards KVM writes nothing into guest memory.

        Raises:
            HostError: KVM refuses it.
        """
        for saved in self._saved:
            saved.restore()
        self._chips.reset()
        for vcpu in self._vcpus:
            vcpu.restart_counter()
        self._vm.set_clock_ns(0)
