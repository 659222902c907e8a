# SPDX-License-Identifier: BSD-3-Clause
"""A VM between vm.shutdown and the next vm.boot.

The vmm is confined and cannot start another VM, so a shutdown is the first half of a reboot: the
machine returns to its start, and guest memory is given back to the host. Its processes wait, and
its descriptors stay open, images and their locks included. vm.boot is the other half. It needs the
configuration of the shutdown, since nothing can be opened any more.
"""

from __future__ import annotations

from crosvm_py.requests.creation import Booted, BootVm
from crosvm_py.requests.life import Reboot
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.requests.vm import HALTED, QueryVm, VmFacts
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.vmm.reboot import Rebooting

EDITED: Final = (
    "the configuration is not what it was at vm.shutdown; this process can only boot that VM again:"
    " start a new process"
)


class HaltedVm:
    """One VM, which clients shut down and boot again. Lives in the thread of its loop."""

    def __init__(
        self,
        rebooting: Rebooting,
        suspension: Suspension,
        stored: Callable[[], bytes],
        tell: Callable[[str], None],
    ) -> None:
        """``stored`` returns the configuration; ``tell`` is called with the events of the VM."""
        self._rebooting = rebooting
        self._suspension = suspension
        self._stored = stored
        self._tell = tell
        self._config = b""

    @property
    def is_halted(self) -> bool:
        """Whether it is shut down."""
        return self._rebooting.is_halted

    def halt(self) -> Response | Pending:
        """Shut the VM down, unless it is; a VM that is paused goes on for that."""
        if self.is_halted:
            return Done()
        if self._suspension.is_busy:
            return Failed("another suspend or resume is under way")
        pending = Pending()

        def halted(reason: str) -> None:
            if not reason:
                self._config = self._stored()
                self._tell("shutdown")
            pending.complete(Failed(reason) if reason else Done())

        self._rebooting.halt(halted)
        if self._suspension.is_suspended:
            self._suspension.resume()
        return pending

    def halt_for_guest(self) -> None:
        """Shut the VM down because its guest has powered off."""
        self.halt()

    def handle(self, request: Request) -> Response:
        """Answer while the VM is shut down."""
        match request:
            case QueryVm():
                return VmFacts(HALTED, 0, 0)
            case BootVm() if self._stored() != self._config:
                return Booted(500, (EDITED,))
            case BootVm():
                self._tell("booting")
                if self._rebooting.boot():
                    self._tell("booted")
                    return Booted(0, ())
                return Booted(500, ("the VM cannot boot again",))
            case Reboot():
                self._tell("rebooting")
        return Failed("VM is not running")
