# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory that grows while the guest runs: memory modules (DIMMs), and virtio-mem.

The table of blocks (``sys_util/hot_memory.py``) is written before KVM shows the memory to the
guest, so that a device process never meets an address that it does not know yet. The vmm relies on
its own record alone, because device processes could change the table.
"""

from __future__ import annotations

from devices.memory_hotplug import MEMORY_SLOTS, Dimm
from sys_util.errors import ConfigError, HostError, describe
from sys_util.guest_memory import MemoryRegion
from sys_util.hot_memory import runs
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

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

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """Where that is, in ascending order."""
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

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """Where the blocks are that the guest has; neighbours are one region."""
        area, step = self._area, self._area.block_bytes
        return tuple(
            MemoryRegion(
                area.start + first * step, (end - first) * step, area.file_offset + first * step
            )
            for first, end in runs(self._there)
        )

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
        self._wanted = 0  # the size that was asked for last

    @property
    def added_bytes(self) -> int:
        """How much all modules have."""
        return sum(dimm.size_bytes for dimm in self._controller.dimms)

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """Where the modules are."""
        return self._blocks.regions

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
        self._wanted = size_bytes
        if more <= 0:
            return
        step = self._area.block_bytes
        self._blocks.add(added // step, more // step)
        self._hotplug.memory_plugged(Dimm(self._area.start + added, more), self._controller)
        log.info("memory: a module of %d MiB is added", more // _MIB)

    def reset(self) -> None:
        """Take away what is more than was asked for last; the guest finds the rest at its boot.

        A module that would be smaller than a step goes as a whole.
        """
        step = self._area.block_bytes
        while self.added_bytes and self._boot_bytes + self.added_bytes > self._wanted:
            gpa, size_bytes, node = self._controller.take_last()
            first = (gpa - self._area.start) // step
            self._blocks.remove(first, size_bytes // step)
            left = (self._wanted - self._boot_bytes - self.added_bytes) // step
            if left > 0:
                self._blocks.add(first, left)
                self._controller.plugged(Dimm(gpa, left * step, node))
        self._controller.reset()


# Requests of a driver of virtio-mem, as the specification numbers them (virtio 1.3 §5.15.6).
PLUG: Final = 0
UNPLUG: Final = 1
UNPLUG_ALL: Final = 2


class PluggedMemory:
    """Memory that the guest plugs and unplugs in blocks, as a device process of virtio-mem asks.

    A guest can have taken that process over, so each of its requests is checked here. Each block is
    a slot of KVM: one that was unplugged is no address for vCPUs either.
    """

    def __init__(self, vm: Vm, area: HotArea, boot_bytes: int, requested_bytes: int) -> None:
        """``requested_bytes`` is how much of the area the guest is asked to plug at first."""
        self._area = area
        self._boot_bytes = boot_bytes
        self._requested = requested_bytes
        self._blocks = KvmBlocks(vm, area)
        # Tells the device how much the guest is to plug.
        self.tell: Callable[[int], None] = lambda _size_bytes: None

    @property
    def added_bytes(self) -> int:
        """How much is plugged."""
        return sum(self._blocks.there) * self._area.block_bytes

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """Where the plugged blocks are."""
        return self._blocks.regions

    @property
    def requested_bytes(self) -> int:
        """How much the guest is to plug."""
        return self._requested

    def check(self, size_bytes: int) -> None:
        """Check whether all memory can have a size.

        Raises:
            ConfigError: it cannot.
        """
        most = self._area.end - self._area.start
        more = size_bytes - self._boot_bytes
        if not 0 <= more <= most:
            raise ConfigError(
                f"memory of {size_bytes // _MIB} MiB: this VM has from {self._boot_bytes // _MIB} "
                f"to {(self._boot_bytes + most) // _MIB} MiB"
            )
        if more % self._area.block_bytes:
            raise ConfigError(
                f"memory of {size_bytes} bytes: its size changes by multiples of "
                f"{self._area.block_bytes // _MIB} MiB"
            )

    def resize(self, size_bytes: int) -> None:
        """Ask the guest to plug or to unplug; it does so when its driver likes."""
        self._requested = size_bytes - self._boot_bytes
        log.info("memory: the guest is to have %d MiB", size_bytes // _MIB)
        self.tell(self._requested)

    def change(self, kind: int, first: int, count: int) -> bool:
        """Plug blocks or unplug them; return whether all of it was done. Otherwise nothing was."""
        there = self._blocks.there
        if not 0 <= first <= first + count <= len(there):
            return False
        blocks = range(first, first + count)
        if kind == UNPLUG_ALL:
            return self._change_each([at for at in blocks if there[at]], plug=False)
        if kind not in (PLUG, UNPLUG) or any(there[at] != (kind == UNPLUG) for at in blocks):
            return False
        after = self.added_bytes + count * self._area.block_bytes
        if kind == PLUG and after > self._requested:
            return False
        return self._change_each(list(blocks), plug=kind == PLUG)

    def _change_each(self, blocks: list[int], *, plug: bool) -> bool:
        change, undo = self._blocks.add, self._blocks.remove
        if not plug:
            change, undo = undo, change
        for index, block in enumerate(blocks):
            try:
                change(block, 1)
            except HostError as error:
                log.warning("memory: %s", describe(error))
                for done in blocks[:index]:
                    undo(done, 1)
                return False
        return True

    def reset(self) -> None:
        """Take all of it from the guest, which plugs it again when its driver starts."""
        self.change(UNPLUG_ALL, 0, self._area.blocks.nbytes)
