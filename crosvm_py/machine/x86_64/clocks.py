# SPDX-License-Identifier: BSD-3-Clause
"""The guest's clocks across a suspension: for the guest no time passes.

kvmclock and the time stamp counter go on while no vCPU runs. After an hour, the guest would run all
timers of that hour at once, and its watchdogs would fire. So we set both clocks back to where they
were. (KVM_KVMCLOCK_CTRL, which each vCPU's thread calls, tells the watchdogs about shorter pauses.)
Afterwards the date is behind, as after any suspension of a machine; guests correct it by the
network or the RTC.

The interval timer (PIT) goes on, too. KVM would deliver its missed ticks later, 3.6 million for an
hour; we tell KVM to drop them. We do so at the first suspension and not at the start, where it
would take 16 ms, because KVM waits for readers of its interrupt tables.
"""

from __future__ import annotations

import time

from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = get_logger("crosvm.vm")

MSR_IA32_TSC: Final = 0x10

# If a counter is set to a value less than a second away from the present one, KVM assumes that the
# guest synchronizes its counters, and ignores the value. So the counter goes on in a shorter pause.
TSC_SECONDS: Final = 1.5


class ClockedVm(Protocol):
    """The part of a ``kvm.vm.Vm`` that is needed here."""

    def clock_ns(self) -> int:
        """Return the guest's kvmclock in nanoseconds."""
        ...

    def set_clock_ns(self, clock_ns: int) -> None:
        """Set it."""
        ...

    def drop_missed_pit_ticks(self) -> None:
        """Have KVM drop ticks that the interval timer could not deliver in time."""
        ...


class ClockedVcpu(Protocol):
    """The part of a ``kvm.vcpu.Vcpu`` that is needed here; the vCPU is paused."""

    def msr(self, index: int) -> int | None:
        """Return a register; ``None`` if KVM does not have it."""
        ...

    def set_msr(self, index: int, value: int) -> bool:
        """Set a register; return whether KVM took it."""
        ...


class GuestClocks:
    """Stop the clocks of one VM; call both methods while every vCPU is paused."""

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
        # One value for all vCPUs. It is read after all have stopped, so none has seen a later one.
        self._tsc = self._vcpus[0].msr(MSR_IA32_TSC)

    def go_on(self) -> None:
        """Set every clock to the remembered time."""
        if self._tsc is not None and self._now() - self._held_at >= TSC_SECONDS:
            for vcpu in self._vcpus:
                if not vcpu.set_msr(MSR_IA32_TSC, self._tsc):
                    log.warning("KVM does not let the time stamp counter stand still")
                    break
        self._vm.set_clock_ns(self._clock_ns)
