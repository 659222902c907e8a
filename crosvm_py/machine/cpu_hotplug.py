# SPDX-License-Identifier: BSD-3-Clause
"""vCPUs that come and go while the guest runs.

A vmm that runs a guest makes no thread. So it makes the most vCPUs that there can be at the start,
each with its thread, and those that the guest does not have wait outside of it: they are parked.
"""

from __future__ import annotations

from devices.cpu_hotplug import CpuHotplugController
from devices.ged import GED_CPU
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import RLock

    from crosvm_py.machine.vcpu import VcpuSet
    from devices.ged import EventDevice

log = get_logger("crosvm.vm")


class CpuHotPlug:
    """The vCPUs that the guest has. No method waits for the guest; most take the model lock."""

    def __init__(
        self,
        lock: RLock,
        events: EventDevice,
        call_soon: Callable[[Callable[[], None]], None],
        present: int,
        most: int,
    ) -> None:
        """The guest has ``present`` vCPUs at first. ``call_soon`` calls back in the loop."""
        self._lock = lock
        self._events = events
        self._call_soon = call_soon
        self._vcpus: VcpuSet | None = None
        self.controller = CpuHotplugController(present, most, self._on_eject)

    def attach(self, vcpus: VcpuSet) -> None:
        """Learn whose threads to park."""
        self._vcpus = vcpus

    @property
    def most(self) -> int:
        """How many vCPUs there can be."""
        return self.controller.most

    @property
    def present(self) -> frozenset[int]:
        """The vCPUs that the guest has, by number."""
        with self._lock:
            return frozenset(self.controller.present)

    @property
    def absent(self) -> frozenset[int]:
        """The other ones."""
        return frozenset(range(self.most)) - self.present

    @property
    def count(self) -> int:
        """How many there are, or will be when the guest has let go of those that it is to."""
        with self._lock:
            return len(self.controller.present) - len(self.controller.asked)

    def is_busy_for(self, count: int) -> bool:
        """Return whether the guest has to let go of vCPUs before there can be so few.

        Raises:
            ConfigError: there can never be so many, or so few.
        """
        if not 1 <= count <= self.most:
            raise ConfigError(f"{count} vCPUs are not 1 to {self.most}")
        with self._lock:
            asked, present = self.controller.asked, self.controller.present
            return bool(asked) and count < len(present) and count != len(present) - len(asked)

    def resize(self, count: int) -> None:
        """Bring vCPUs at once, or ask the guest to let go of the last ones.

        A count for which it ``is_busy_for`` changes nothing. Call it in the loop's thread.
        """
        if self.is_busy_for(count) or count == self.count:
            return
        with self._lock:
            controller = self.controller
            controller.recall()
            lacking = sorted(set(range(controller.most)) - controller.present)
            coming = lacking[: max(0, count - len(controller.present))]
            for cpu in coming:
                controller.plug(cpu)
            for cpu in sorted(controller.present)[count:]:
                controller.ask_to_eject(cpu)
            self._events.tell(GED_CPU)
        if self._vcpus is not None:
            self._vcpus.bring(*coming)
        log.info("the guest has %d vCPUs now, or will have, when it has followed", count)

    def reset(self) -> None:
        """Return to the start of a guest; vCPUs that were to go have gone. See ``board.Part``."""
        self.controller.reset()
        for cpu in self.absent:
            self._park(cpu)

    def _on_eject(self, cpu: int) -> None:
        """Take the guest's word, in a vCPU's thread, which may signal no other: see its policy."""
        if cpu in self.controller.present:
            self._events.tell(GED_CPU)  # it was recalled
        else:
            self._call_soon(lambda: self._park(cpu))

    def _park(self, cpu: int) -> None:
        with self._lock:
            has_gone = cpu not in self.controller.present  # it can have come again by now
        if has_gone and self._vcpus is not None:
            self._vcpus.take_away(cpu)
