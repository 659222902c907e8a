# SPDX-License-Identifier: BSD-3-Clause
"""The guest's clocks across a suspension: for the guest no time passes.

kvmclock and the time stamp counter both run on while no vCPU does. A guest that then finds an hour
gone runs every timer of that hour at once, and its watchdogs bite. So both go on from where they
stood. (KVM_KVMCLOCK_CTRL, sent by each vCPU's thread, tells the watchdogs of the rest.) The date is
behind afterwards, as after any suspension of a machine; guests set it by the network or the RTC.

The interval timer runs on, too. Its ticks of that time are lost, where KVM would deliver 3.6
million for an hour. The first suspension tells it: at the start that would take 16 ms, for which
KVM waits for readers of its interrupt tables.
"""

from __future__ import annotations

import time

from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = get_logger("crosvm.vm")

MSR_IA32_TSC: Final = 0x10

# KVM takes a counter that is set less than a second off for one more of several that belong
# together, and ignores the value. So a shorter pause is one that the counter has seen.
TSC_SECONDS: Final = 1.5


class ClockedVm(Protocol):
    """What is needed of a ``kvm.vm.Vm``."""

    def clock_ns(self) -> int:
        """Return the guest's kvmclock."""
        ...

    def set_clock_ns(self, clock_ns: int) -> None:
        """Set it."""
        ...

    def drop_missed_pit_ticks(self) -> None:
        """Let the interval timer catch up with nothing."""
        ...


class ClockedVcpu(Protocol):
    """What is needed of a ``kvm.vcpu.Vcpu`` that stands still."""

    def msr(self, index: int) -> int | None:
        """Return a register, ``None`` where KVM has no such."""
        ...

    def set_msr(self, index: int, value: int) -> bool:
        """Set a register; return whether KVM took it."""
        ...


class GuestClocks:
    """Hold the clocks of one VM; call both while every vCPU stands still."""

    def __init__(
        self,
        vm: ClockedVm,
        vcpus: Sequence[ClockedVcpu],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vm = vm
        self._vcpus = vcpus
        self._now = now
        self._clock_ns = 0
        self._tsc: int | None = None
        self._held_at = 0.0

    def hold(self) -> None:
        """Remember the time of the guest."""
        self._vm.drop_missed_pit_ticks()
        self._held_at = self._now()
        self._clock_ns = self._vm.clock_ns()
        # One value for all, read after all stopped: none of them has seen a later one.
        self._tsc = self._vcpus[0].msr(MSR_IA32_TSC)

    def go_on(self) -> None:
        """Set every clock to what was remembered."""
        if self._tsc is not None and self._now() - self._held_at >= TSC_SECONDS:
            for vcpu in self._vcpus:
                if not vcpu.set_msr(MSR_IA32_TSC, self._tsc):
                    log.warning("KVM does not let the time stamp counter stand still")
                    break
        self._vm.set_clock_ns(self._clock_ns)
