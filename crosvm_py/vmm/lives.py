# SPDX-License-Identifier: BSD-3-Clause
"""The lives of device processes: what follows when one is ready, fails, ends or is late."""

from __future__ import annotations

import time

from crosvm_py.care import NEVER
from crosvm_py.warden import protocol
from sys_util import log as logging
from sys_util.errors import ChannelClosed, ProtocolError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.care import Care
    from crosvm_py.vmm.supervised import SupervisedDevice
    from crosvm_py.vmm.warden_proxy import WardenProcess
    from sys_util import socket
    from sys_util.event_loop import EventLoop

log = logging.get_logger("crosvm.devices")

# The most time from the request for a process to its ``Ready``. Even slow hosts need far less.
START_SECONDS: Final = 60.0


class Lives:
    """The part of the supervisor that acts on what becomes of processes."""

    def __init__(
        self,
        loop: EventLoop,
        warden: WardenProcess,
        on_death: Callable[[str], None],
        care: Care,
    ) -> None:
        self._loop = loop
        self._warden = warden
        self._on_death = on_death
        self._care = care
        self._memory_fd = -1
        self._waiting: set[int] = set()  # devices of the start that are not ready yet
        self._failure = ""
        self._ending = False

    def _on_spawned(self, supervised: SupervisedDevice, pid: int, sock: socket.socket) -> None:
        if supervised.is_removed:  # the warden is about to end it
            sock.close()
            return
        device = supervised.device
        device.pid = pid
        device.attach(sock)
        if supervised.timer is not None:  # the process begins now: not to be late
            self._limit_start(supervised)
        log.debug("%s is process %d", device.name, pid)

    def _on_ready(self, supervised: SupervisedDevice) -> None:
        now = time.monotonic()
        supervised.ready(now)
        self._waiting.discard(supervised.device.device_id)
        device = supervised.device
        if device.status.restarts:
            took_ms = 1000 * (now - supervised.ended_at)
            facts = (device.name, device.pid, took_ms, device.status.restarts)
            supervised.log.info("%s: process %d goes on after %.0f ms (restart %d)", *facts)
        supervised.answer_restart("")
        supervised.answer_first("")

    def _on_failure(self, supervised: SupervisedDevice) -> None:
        """Kill the process: its channel is closed, so the vmm can no longer talk to it.

        The process broke a rule, closed the channel, or has ended; then killing it has no effect.
        """
        supervised.ended_at = time.monotonic()
        self._kill(supervised)
        self._report(supervised)

    def _on_renewed(self, supervised: SupervisedDevice, reason: str) -> None:
        """Take the warden's answer to ``Renew``: the code of the next process is loaded, or not."""
        device = supervised.device
        supervised.is_renewing = False
        if reason:
            supervised.log.error("%s: is not restarted: %s", device.name, reason)
            supervised.answer_restart(f"{device.name}: {reason}")
        elif supervised.on_restarted and device.status.ready:  # otherwise it has ended meanwhile
            supervised.on_purpose = True
            device.finish(lambda: self._end_process(supervised))

    def _end_process(self, supervised: SupervisedDevice) -> None:
        """End a process for a requested restart; it has finished the requests it had begun."""
        if supervised.device.is_open:
            supervised.ended_at = time.monotonic()
            supervised.device.close()
            self._kill(supervised)
            self._report(supervised)

    def _kill(self, supervised: SupervisedDevice) -> None:
        try:
            self._warden.channel.send(protocol.Kill(supervised.device.device_id))
        except (ChannelClosed, ProtocolError):
            return  # the devices of an ended warden die with it; if it hangs, ``end`` kills it

    def _report(self, supervised: SupervisedDevice) -> None:
        """Log how a process ended, once its channel is closed and its exit status is known."""
        device = supervised.device
        if device.is_open or device.death.status is None or self._ending:
            return
        if supervised.is_removed:
            return
        supervised.stop_waiting()
        if not device.death.is_told_in_one_line:
            for line in device.death.report.splitlines():
                device.say(logging.ERROR, log.module, line)
        if supervised.on_purpose:
            supervised.on_purpose = False
            log.info("%s (pid %d): ended to be restarted", device.name, device.pid)
            self._respawn(supervised)
        else:
            supervised.check_state()
            cause = device.death.describe(device.kind.policy_name)
            self._on_lost(supervised, f"{device.name} (pid {device.pid}): {cause}")

    def _on_lost(self, supervised: SupervisedDevice, line: str) -> None:
        """Restart a device whose process ended unexpectedly or could not be made, or give it up."""
        if supervised.is_removed or supervised.answer_first(line):
            return
        if not supervised.device.status.served or self._care.restarts == NEVER:
            self._end_vm(line)
            return
        supervised.log.error("%s", line)
        supervised.answer_restart(line)
        delay = supervised.budget.next_delay(time.monotonic())
        if delay is None:
            facts = (supervised.device.name, supervised.budget.describe())
            log.error("%s: is lost to the guest: restarted %s (--device-restart)", *facts)
            supervised.device.give_up()
        elif delay:
            self._loop.call_later(delay, lambda: self._respawn(supervised))
        else:
            self._respawn(supervised)

    def _respawn(self, supervised: SupervisedDevice) -> None:
        if self._ending or self._failure or supervised.is_removed:
            return
        supervised.device.status.restarts += 1
        self._send_respawn(supervised)

    def _send_respawn(self, supervised: SupervisedDevice) -> None:
        supervised.is_ready = False
        message = protocol.Respawn(supervised.device.device_id)
        try:
            self._warden.channel.send(message, [self._memory_fd, supervised.page.fd])
        except (ChannelClosed, ProtocolError):
            return  # ``_on_warden`` sees that the warden has ended
        self._limit_start(supervised)

    def _limit_start(self, supervised: SupervisedDevice) -> None:
        """Give the device's next process, or the one that begins now, its time to get ready."""
        supervised.stop_waiting()
        words = f"not ready after {START_SECONDS:.0f} s"
        supervised.timer = self._loop.call_later(
            START_SECONDS, lambda: supervised.device.fail(words)
        )

    def _end_vm(self, reason: str) -> None:
        if self._ending or self._failure:
            return
        self._failure = reason
        self._on_death(reason)
