# SPDX-License-Identifier: BSD-3-Clause
"""The CPU hot-plug controller: which CPUs are there, and which the guest is to look at or let go.

The registers are those of Cloud Hypervisor, in 12 bytes; AML uses them, no driver knows them:

- 0, 32 bits: the number of a CPU, for the next register;
- 4, 8 bits, of that CPU: bit 0, it is there; bit 1, it has come; bit 2, the guest is asked to let
  it go. Written as 1, bits 1 and 2 are cleared, and bit 3 says that the guest has let it go.
"""

from __future__ import annotations

from devices.bus import all_ones
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CPU_HOTPLUG_BYTES: Final = 12

CPU_ENABLED: Final = 1 << 0
CPU_INSERTING: Final = 1 << 1
CPU_REMOVING: Final = 1 << 2
CPU_EJECT: Final = 1 << 3

_SELECT_OFFSET: Final = 0
_SELECT_BYTES: Final = 4
_STATUS_OFFSET: Final = 4


class CpuHotplugController:
    """The registers, and what they stand for. Every call needs the device-model lock."""

    def __init__(self, present: int, most: int, on_eject: Callable[[int], None]) -> None:
        """There are ``present`` CPUs from 0 up, and there can be ``most``.

        ``on_eject`` is called with a CPU that the guest was asked to let go and has let go.
        """
        self.most = most
        self.present = set(range(present))
        self.asked: set[int] = set()  # to let go; the guest has not done so yet
        self._recalled: set[int] = set()  # were asked for, and may stay after all
        self._inserting: set[int] = set()  # the guest has not yet looked at them
        self._removing: set[int] = set()
        self._on_eject = on_eject
        self._select = 0

    def reset(self) -> None:
        """Return to the start, with the CPUs that were not to go."""
        for cpu in sorted(self.asked):
            self._eject(cpu)
        self._recalled.clear()
        self._inserting.clear()
        self._removing.clear()
        self._select = 0

    def plug(self, cpu: int) -> None:
        """Show the guest a CPU that has come."""
        self.present.add(cpu)
        self._recalled.discard(cpu)
        self._inserting.add(cpu)

    def ask_to_eject(self, cpu: int) -> None:
        """Ask the guest to let a CPU go."""
        self.asked.add(cpu)
        self._recalled.discard(cpu)
        self._removing.add(cpu)

    def recall(self) -> None:
        """Let every CPU stay that the guest was asked to let go.

        It may be about to let one go. Then it is told at once that the CPU has come again.
        """
        self._recalled |= self.asked
        self._removing -= self.asked
        self.asked.clear()

    def _eject(self, cpu: int) -> None:
        self.asked.discard(cpu)
        self.present.discard(cpu)
        self._inserting.discard(cpu)
        self._removing.discard(cpu)
        self._on_eject(cpu)

    def read(self, offset: int, size: int) -> int:
        if (offset, size) == (_SELECT_OFFSET, _SELECT_BYTES):
            return self._select
        if (offset, size) != (_STATUS_OFFSET, 1):
            return all_ones(size)
        cpu = self._select
        return (
            CPU_ENABLED * (cpu in self.present)
            | CPU_INSERTING * (cpu in self._inserting)
            | CPU_REMOVING * (cpu in self._removing)
        )

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (_SELECT_OFFSET, _SELECT_BYTES):
            self._select = value
        elif (offset, size) == (_STATUS_OFFSET, 1):
            self._write_status(self._select, value)

    def _write_status(self, cpu: int, value: int) -> None:
        if value & CPU_INSERTING:
            self._inserting.discard(cpu)
        if value & CPU_REMOVING:
            self._removing.discard(cpu)
        if not value & CPU_EJECT:
            return
        if cpu in self.asked:
            self._eject(cpu)
        elif cpu in self._recalled:
            self._recalled.discard(cpu)
            self._inserting.add(cpu)
            self._on_eject(cpu)
