# SPDX-License-Identifier: BSD-3-Clause
"""A VM between vm.shutdown and the next vm.boot.

The vmm is confined and cannot start another VM, so a shutdown is the first half of a reboot: the
machine returns to its start, and guest memory is given back to the host. Its processes wait, and
its descriptors stay open, images and their locks included. vm.boot is the other half. The control
process refuses it for another configuration (``api/creation.py``), since nothing can be opened any
more. Sizes can change: those of the guest's start are set before its vCPUs run.
"""

from __future__ import annotations

from crosvm_py.requests.creation import Booted, BootVm
from crosvm_py.requests.life import Reboot
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.requests.resize import Resize
from crosvm_py.requests.vm import HALTED, QueryVm, VmFacts
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.requests.pending import Handler
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.vmm.reboot import Rebooting


class HaltedVm:
    """One VM, which clients shut down and boot again. Lives in the thread of its loop."""

    def __init__(
        self,
        rebooting: Rebooting,
        suspension: Suspension,
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` is called with the events of the VM."""
        self._rebooting = rebooting
        self._suspension = suspension
        self._tell = tell

    @property
    def is_halted(self) -> bool:
        """Whether it is shut down."""
        return self._rebooting.is_halted

    def halt(self) -> Response | Pending:
        """Shut the VM down, unless it is; a VM that is paused goes on for that."""
        if self.is_halted:
            return Done()
        if self._suspension.is_busy:
            return Failed("a suspend, resume or core dump is under way")
        pending = Pending()

        def halted(reason: str) -> None:
            if not reason:
                self._tell("shutdown")
            pending.complete(Failed(reason) if reason else Done())

        self._rebooting.halt(halted)
        if self._suspension.is_suspended:
            self._suspension.resume()
        return pending

    def halt_for_guest(self) -> None:
        """Shut the VM down because its guest has powered off."""
        self.halt()

    def handle(self, request: Request, handle: Handler) -> Response | Pending:
        """Answer while the VM is shut down; ``handle`` answers as for one that runs."""
        match request:
            case QueryVm():
                return VmFacts(HALTED, 0, 0)
            case BootVm():
                self._tell("booting")
                if self._rebooting.boot():
                    self._tell("booted")
                    return Booted(0, ())
                return Booted(500, ("the VM cannot boot again",))
            case Resize():
                answer = handle(request)
                self._rebooting.follow()
                return answer
            case Reboot():
                self._tell("rebooting")
        return Failed("VM is not running")
