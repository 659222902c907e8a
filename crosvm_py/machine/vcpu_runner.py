# SPDX-License-Identifier: BSD-3-Clause
"""The loop of one vCPU: enter the guest, and handle every exit."""

from __future__ import annotations

import errno
import os

from crosvm_py.exit_status import VmExit
from crosvm_py.machine.vcpu_exit import StoppedVcpu, VmExitReason, ended_by_exit
from kvm.run_page import KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO, RunPage
from sys_util.errors import NO_MORE_PROCESSES, remedy_for
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_WHOLE_ACCESS: Final = frozenset({1, 2, 4, 8})


class IoBus(Protocol):
    """The part of ``devices.bus.Bus`` that exits need."""

    def read(self, address: int, size: int) -> int:
        """Return the little-endian value at ``address``; all ones if there is no device."""
        ...

    def write(self, address: int, size: int, value: int) -> None:
        """Store ``value`` at ``address``."""
        ...


class RunnableVcpu(StoppedVcpu, Protocol):
    """The part of a ``kvm.vcpu.Vcpu`` that the loop needs."""

    @property
    def page(self) -> memoryview:
        """The ``struct kvm_run`` page."""
        ...

    def run(self) -> int:
        """Enter the guest; return 0 or a negative ``errno``."""
        ...

    def mp_state(self) -> int:
        """Return the ``KVM_MP_STATE_…``; the call blocks while the vCPU is in the guest."""
        ...

    def set_immediate_exit(self, *, enabled: bool) -> None:
        """Make ``run`` complete the last exit and return."""
        ...

    def switch_off(self) -> None:
        """Have it wait for the guest to start it, as it does when it is made."""
        ...

    def notify_paused(self) -> None:
        """Tell the guest that it was paused, so that its watchdogs do not fire."""
        ...


class VcpuRunner:
    """The loop of one vCPU. It handles every exit, so attributes are looked up in advance."""

    def __init__(
        self, vcpu: RunnableVcpu, pio: IoBus, mmio: IoBus, *, hardware_virtualization: bool
    ) -> None:
        self.vcpu = vcpu
        self.exits = 0
        self._page = RunPage(vcpu.page)
        self._pio = pio
        self._mmio = mmio
        self._hardware_virtualization = hardware_virtualization
        self._views = {1: self._page.u8, 2: self._page.u16, 4: self._page.u32}

    def run(self, gate: Callable[[RunnableVcpu], bool]) -> VmExitReason | None:
        """Run the guest until an exit ends the VM (return how), or ``gate`` returns False."""
        vcpu = self.vcpu
        enter, exit_reason = vcpu.run, self._page.exit_reason
        if not gate(vcpu):
            return None
        while True:
            result = enter()
            if result == 0:
                self.exits += 1
                reason = exit_reason()
                if reason == KVM_EXIT_IO:
                    self._handle_io()
                elif reason == KVM_EXIT_MMIO:
                    self._handle_mmio()
                elif reason != KVM_EXIT_INTR:
                    return self._end(reason)
            elif result == -errno.EINTR or self._waits_for_startup(result):
                if not gate(vcpu):
                    return None
            else:
                error = OSError(-result, os.strerror(-result))
                hint = f" ({NO_MORE_PROCESSES})" if result == -errno.EAGAIN else remedy_for(error)
                text = f"vCPU {vcpu.index}: KVM_RUN: {error.strerror}{hint}"
                return VmExitReason(VmExit.CRASH, text)

    def _waits_for_startup(self, result: int) -> bool:
        """Return whether KVM_RUN failed because the vCPU waits for its start-up IPI.

        The first vCPU never waits for one. For it, EAGAIN means that KVM could not start a thread.
        """
        return result == -errno.EAGAIN and self.vcpu.index != 0

    def _end(self, exit_reason: int) -> VmExitReason:
        return ended_by_exit(
            self.vcpu,
            self._page,
            exit_reason,
            hardware_virtualization=self._hardware_virtualization,
        )

    def _handle_io(self) -> None:
        """Carry out IN and OUT, or every element of INS and OUTS that this exit covers."""
        direction, size, port, count, offset = self._page.io()
        view = self._views[size]
        first = offset // size
        if direction == KVM_EXIT_IO_IN:
            read = self._pio.read
            for at in range(first, first + count):
                view[at] = read(port, size)
        else:
            write = self._pio.write
            for at in range(first, first + count):
                write(port, size, view[at])

    def _handle_mmio(self) -> None:
        """Carry out a load or store. KVM splits an access across pages, even into odd sizes."""
        address, data, length, is_write = self._page.mmio()
        if length not in _WHOLE_ACCESS:
            self._handle_split_mmio(address, data, length, is_write=bool(is_write))
        elif is_write:
            self._mmio.write(address, length, data & ((1 << 8 * length) - 1))
        else:
            self._page.set_mmio_data(self._mmio.read(address, length))

    def _handle_split_mmio(self, address: int, data: int, length: int, *, is_write: bool) -> None:
        if is_write:
            for at in range(length):
                self._mmio.write(address + at, 1, data >> 8 * at & 0xFF)
        else:
            value = sum(self._mmio.read(address + at, 1) << 8 * at for at in range(length))
            self._page.set_mmio_data(value)
