# SPDX-License-Identifier: BSD-3-Clause
"""Operations on the whole VM: end it, suspend and resume it, press its power button."""

from __future__ import annotations

from crosvm_py.exit_status import VmExit
from crosvm_py.operations.operation import operation
from crosvm_py.requests.life import PowerButton, Reboot, Resume, Stop, Suspend
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.protocol import Response


@operation(Stop)
def stop(vm: RunningVm, _request: Stop) -> Done:
    """End the VM as soon as the answer is sent."""
    vm.end(VmExit.STOPPED, "stopped by a client")
    return Done()


@operation(Reboot)
def reboot(vm: RunningVm, _request: Reboot) -> Response | Pending:
    """Boot the guest again. A VM that is suspended goes on then.

    Raises:
        ConfigError: this VM cannot, or it is just being suspended or resumed.
    """
    rebooting = vm.rebooting
    if rebooting is None:
        raise ConfigError("this VM was not started with --reboot: its guest cannot boot again")
    if vm.suspension.is_busy:
        raise ConfigError("a suspend, resume or core dump is under way: try again")
    pending = Pending()
    rebooting.reboot(lambda reason: pending.complete(Failed(reason) if reason else Done()))
    if vm.suspension.is_suspended:
        vm.suspension.resume()
    return pending


@operation(Suspend)
def suspend(vm: RunningVm, _request: Suspend) -> Response | Pending:
    """Pause vCPUs and devices."""
    return vm.suspension.suspend()


@operation(Resume)
def resume(vm: RunningVm, _request: Resume) -> Response | Pending:
    """Let devices and vCPUs go on."""
    return vm.suspension.resume()


@operation(PowerButton)
def press_power_button(vm: RunningVm, _request: PowerButton) -> Done:
    """Tell the guest that the button was pressed; the guest decides whether to shut down."""
    vm.machine.press_power_button()
    return Done()
