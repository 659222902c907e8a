# SPDX-License-Identifier: BSD-3-Clause
"""Suspend a VM (first its vCPUs, then its devices) and resume it (in reverse order)."""

from __future__ import annotations

from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.reboot import Rebooting
    from crosvm_py.vmm.supervisor import Supervisor

log = get_logger("crosvm.vm")

_PAUSE_SECONDS: Final = 5.0


class Suspension:
    """Suspends and resumes one VM. Use it in the loop's thread only."""

    def __init__(self, machine: Board, vcpus: VcpuSet, supervisor: Supervisor) -> None:
        self._vcpus = vcpus
        self._supervisor = supervisor
        self._suspended = False
        self._busy = False
        self._suspending = False
        self._held = False
        self._clocks = machine.make_clocks()
        self._rebooting: Rebooting | None = None

    def join(self, rebooting: Rebooting) -> None:
        """Let a reboot wait until the VM goes on, and a suspension until it has rebooted."""
        self._rebooting = rebooting
        rebooting.is_held = lambda: self.is_held

    @property
    def is_suspended(self) -> bool:
        """Whether the VM is held still."""
        return self._suspended

    @property
    def holds_devices(self) -> bool:
        """Whether devices stand still, or are being brought to."""
        return self._suspended or self._suspending

    @property
    def is_busy(self) -> bool:
        """Whether devices are being brought to stand still or to go on, or the VM is dumped."""
        return self._busy

    @property
    def is_held(self) -> bool:
        """Whether the VM is held still, or is being brought to, or to go on."""
        return self._suspended or self._busy

    def hold(self) -> None:
        """Refuse to resume the VM, which is suspended, until ``let_go``."""
        self._busy = self._held = True

    def let_go(self) -> None:
        """Allow again what ``hold`` has forbidden, if it has."""
        if self._held:
            self._busy = self._held = False

    def suspend(self) -> Response | Pending:
        """Pause every vCPU, then every device; the answer comes when no request is in flight."""
        if self._busy:
            return Failed("a suspend, resume or core dump is under way")
        if self._rebooting is not None and self._rebooting.is_under_way:
            return self._suspend_after(self._rebooting)
        if self._suspended:
            return Done()
        self._vcpus.pause()
        if not self._vcpus.wait_paused(_PAUSE_SECONDS):
            self._vcpus.resume()
            return Failed(f"the vCPUs did not stand still within {_PAUSE_SECONDS:.0f} s")
        self._clocks.hold()
        self._suspending = True

        def finish() -> None:
            self._suspended, self._suspending = True, False
            log.info("the VM is suspended")

        return self._all_devices(lambda device, then: device.pause(then), finish)

    def _suspend_after(self, rebooting: Rebooting) -> Pending:
        pending = Pending()

        def go_on(reason: str) -> None:
            answer = Failed(reason) if reason else self.suspend()
            if isinstance(answer, Pending):
                answer.deliver_to(pending.complete)
            else:
                pending.complete(answer)

        rebooting.when_done(go_on)
        return pending

    def resume(self) -> Response | Pending:
        """Let the devices go on, then the clocks from where they stopped, then the vCPUs."""
        if self._busy:
            return Failed("a suspend, resume or core dump is under way")
        if not self._suspended:
            return Done()
        self._suspended = False

        def finish() -> None:
            self._clocks.go_on()
            if self._rebooting is None or self._rebooting.may_run():
                self._vcpus.resume()
            log.info("the VM goes on")

        return self._all_devices(lambda device, then: device.resume(then), finish)

    def _all_devices(
        self,
        ask: Callable[[DeviceProcess, Callable[[], None]], None],
        finish: Callable[[], None],
    ) -> Response | Pending:
        devices = self._supervisor.devices
        pending = Pending()
        left = len(devices)
        self._busy = True

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self._busy = False
                finish()
                pending.complete(Done())

        if not devices:
            one_done()
        for device in devices:
            ask(device, one_done)
        return pending
