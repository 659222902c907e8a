# SPDX-License-Identifier: BSD-3-Clause
"""A reset by the guest, or by a client, boots the guest again in the same process.

First every vCPU stands still. Then the virtio devices are reset; a device process that does not let
go of guest memory in time is replaced, as one that hangs. When none uses guest memory any more, the
machine returns to its start: registers, interrupt controllers and clocks, memory that is zero, and
the kernel in it. The vCPU threads, device processes, consoles and clients stay what they were.

Nobody waits but the event loop, and it only for vCPUs to leave the guest.
"""

from __future__ import annotations

from crosvm_py.exit_status import VmExit
from sys_util.errors import VmmError, describe
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from sys_util.event_loop import EventLoop

# A guest can do this again and again.
_log = get_logger("crosvm.vm").limited()

_PAUSE_SECONDS: Final = 5.0
# How often to look whether a device process has ended that was removed.
_SETTLE_SECONDS: Final = 0.005

# Called with "" when the guest runs again, or with the reason why it never will.
RebootResult: TypeAlias = "Callable[[str], None]"


class Rebooting:
    """The reboots of one VM. Every method runs in the loop's thread, but ``request``."""

    def __init__(
        self,
        loop: EventLoop,
        machine: Board,
        vcpus: VcpuSet,
        end: Callable[[VmExit, str], None],
    ) -> None:
        """Reboot ``machine``, whose start was kept; ``end`` ends the VM if that fails."""
        self._loop = loop
        self._machine = machine
        self._vcpus = vcpus
        self._end = end
        self._wanted = False  # until the guest runs again
        self._by_client = False
        self._under_way = False
        self._halting = False  # the guest is not to boot before ``boot``
        self._halted = False
        self._waiting: list[RebootResult] = []
        # Whether the VM is suspended, or becomes so: then a reset waits until it is to go on.
        self.is_held: Callable[[], bool] = lambda: False
        # Called with "rebooting" and "rebooted", and whether a client has asked for it.
        self.on_event: Callable[[str, bool], None] = lambda _event, _by_client: None
        # Whether nothing is left of devices that the guest has let go.
        self.is_settled: Callable[[], bool] = lambda: True
        # Called while nothing runs, when the machine has returned to its start.
        self.on_restart: Callable[[], None] = lambda: None
        vcpus.on_reset = self.request

    @property
    def is_halted(self) -> bool:
        """Whether the machine stands at its start, and waits for ``boot``."""
        return self._halted

    @property
    def is_under_way(self) -> bool:
        """Whether the machine is being reset, so that it cannot be suspended now."""
        return self._under_way

    def request(self, reason: str) -> bool:
        """Reboot soon. For any thread, also with the device-model lock held; returns True.

        No vCPU that has left the guest enters it before.
        """
        self._vcpus.park()
        if not self._wanted and not self._halted:
            self._wanted = True
            self._loop.call_soon_threadsafe(lambda: self._begin(reason))
        return True

    def reboot(self, then: RebootResult) -> None:
        """Reboot for a client; ``then`` is called once."""
        self._by_client = True
        self._waiting.append(then)
        self.request("a client asked for a reboot")

    def halt(self, then: RebootResult) -> None:
        """Return the machine to its start and let it stand; ``then`` is called once."""
        self._halting = True
        self._waiting.append(then)
        self.request("the VM is shut down")

    def follow(self) -> None:
        """Have a machine that is halted take what its guest was asked for since."""
        self._machine.reset_parts()

    def boot(self) -> bool:
        """Boot the guest of a machine that was halted; return False if the VM ends instead."""
        try:
            self._machine.restart()
        except VmmError as error:
            self._fail(describe(error))
            return False
        self._halted = False
        self._vcpus.resume()
        return True

    def when_done(self, then: RebootResult) -> None:
        """Call ``then``, once, when the reboot that is under way is done."""
        self._waiting.append(then)

    def may_run(self) -> bool:
        """Return whether vCPUs may run that were suspended; if not, they do after the reboot."""
        if not self._wanted:
            return True
        self._begin("the guest asked for a reset")
        return False

    def close(self) -> None:
        """Answer whoever waits: the VM ends."""
        self._answer("the VM ends")

    def _begin(self, reason: str) -> None:
        if self._under_way or not self._wanted or self.is_held():
            return
        self._under_way = True
        if self._halting:
            _log.info("%s", reason)
        else:
            _log.info("%s: it boots again", reason)
            self.on_event("rebooting", self._by_client)
        self._vcpus.pause()
        if not self._vcpus.wait_paused(_PAUSE_SECONDS):
            self._fail(f"the vCPUs did not stand still within {_PAUSE_SECONDS:.0f} s")
            return
        self._machine.power_on_devices(lambda: self._loop.call_soon_threadsafe(self._restart))

    def _restart(self) -> None:
        if not self.is_settled():
            self._loop.call_later(_SETTLE_SECONDS, self._restart)
            return
        try:
            if self._halting:
                self._machine.reset_parts()
                self._machine.memory.clear()
            else:
                self._machine.restart()
            self.on_restart()
        except VmmError as error:
            self._fail(describe(error))
            return
        by_client, self._by_client = self._by_client, False
        self._wanted = self._under_way = False
        if self._halting:
            self._halting, self._halted = False, True
        else:
            self._vcpus.resume()
            self.on_event("rebooted", by_client)
        self._answer("")

    def _fail(self, reason: str) -> None:
        self._end(VmExit.ERROR, f"the guest cannot boot again: {reason}")

    def _answer(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(reason)
