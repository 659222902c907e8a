# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory that grows while the guest runs: what KVM shows, and memory modules (DIMMs).

The table of blocks (``sys_util/hot_memory.py``) is written before KVM shows the memory to the
guest, so that a device process never meets an address that it does not know yet. The vmm relies on
its own record alone, because device processes could change the table.
"""

from __future__ import annotations

from devices.memory_hotplug import MEMORY_SLOTS, Dimm
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from crosvm_py.machine.hotplug import HotPlug
    from devices.memory_hotplug import MemoryHotplugController
    from kvm.vm import Vm
    from sys_util.hot_memory import HotArea

log = get_logger("crosvm.memory")

_MIB: Final = 1 << 20
# The slots of KVM below are for memory that is there from the start.
_FIRST_KVM_SLOT: Final = 16


class Growth(Protocol):
    """How the memory of one VM changes its size."""

    @property
    def added_bytes(self) -> int:
        """How much there is now beyond the memory of the start."""
        ...

    def check(self, size_bytes: int) -> None:
        """Check whether all memory can have a size.

        Raises:
            ConfigError: it cannot.
        """
        ...

    def resize(self, size_bytes: int) -> None:
        """Change the size of all memory, which was checked; the guest follows when it likes.

        Raises:
            HostError: KVM refuses; nothing was changed.
        """
        ...


class KvmBlocks:
    """The blocks of one area that the guest has, in KVM and in the table of all processes."""

    def __init__(self, vm: Vm, area: HotArea) -> None:
        self._vm = vm
        self._area = area
        self._there = bytearray(area.blocks.nbytes)

    @property
    def there(self) -> bytes:
        """A byte for each block, which is 1 while the guest has it."""
        return bytes(self._there)

    def add(self, first: int, count: int) -> None:
        """Give the guest some blocks that it does not have, as one slot of KVM.

        Raises:
            HostError: KVM refuses; nothing was changed.
        """
        area = self._area
        start, end = first * area.block_bytes, (first + count) * area.block_bytes
        area.show(first, count)
        try:
            self._vm.add_memory(_FIRST_KVM_SLOT + first, area.start + start, area.view[start:end])
        except BaseException:
            area.hide(first, count)
            raise
        self._there[first : first + count] = b"\1" * count

    def remove(self, first: int, count: int) -> None:
        """Take from the guest what one ``add`` gave it; its contents stay until a hole is made.

        Raises:
            HostError: KVM refuses; nothing was changed.
        """
        self._vm.remove_memory(_FIRST_KVM_SLOT + first)
        self._there[first : first + count] = bytes(count)
        self._area.hide(first, count)


class Dimms:
    """Memory that grows by modules. A guest cannot be made to let go of one, except by a reset."""

    def __init__(
        self,
        vm: Vm,
        area: HotArea,
        boot_bytes: int,
        controller: MemoryHotplugController,
        hotplug: HotPlug,
    ) -> None:
        """``boot_bytes`` is the memory of the start; a module is a multiple of a block."""
        self._area = area
        self._boot_bytes = boot_bytes
        self._blocks = KvmBlocks(vm, area)
        self._controller = controller
        self._hotplug = hotplug

    @property
    def added_bytes(self) -> int:
        """How much all modules have."""
        return sum(dimm.size_bytes for dimm in self._controller.dimms)

    def check(self, size_bytes: int) -> None:
        """Check whether all memory can have a size. A smaller one has no effect before a reset.

        Raises:
            ConfigError: it cannot.
        """
        more = size_bytes - self._boot_bytes - self.added_bytes
        if more <= 0:
            return
        most = self._area.end - self._area.start
        if self.added_bytes + more > most:
            raise ConfigError(
                f"memory of {size_bytes // _MIB} MiB: this VM has at most "
                f"{(self._boot_bytes + most) // _MIB} MiB"
            )
        step = self._area.block_bytes
        if more % step:
            raise ConfigError(
                f"memory of {size_bytes} bytes: it grows by multiples of {step // _MIB} MiB, and "
                f"{more} bytes more than now are none"
            )
        if self._controller.is_full:
            raise ConfigError(f"memory: all {MEMORY_SLOTS} slots for modules are in use")

    def resize(self, size_bytes: int) -> None:
        """Add a module where the size is larger than now.

        Raises:
            HostError: KVM refuses; nothing was changed.
        """
        added = self.added_bytes
        more = size_bytes - self._boot_bytes - added
        if more <= 0:
            return
        step = self._area.block_bytes
        self._blocks.add(added // step, more // step)
        self._hotplug.memory_plugged(Dimm(self._area.start + added, more), self._controller)
        log.info("memory: a module of %d MiB is added", more // _MIB)
