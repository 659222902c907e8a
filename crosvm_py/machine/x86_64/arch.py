# SPDX-License-Identifier: BSD-3-Clause
"""x86-64 as a ``crosvm_py.machine.arch.Arch``."""

from __future__ import annotations

from crosvm_py.config import DIMM_STEP_BYTES
from crosvm_py.machine.x86_64 import layout
from sys_util.typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import RLock

    from crosvm_py.machine.board import Board, MachineEvents
    from kernel_loader.boot_params import E820Entry
    from kernel_loader.load import BootLayout
    from kvm.vm import Kvm
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory


class X86:
    """A PC with a 64-bit processor."""

    boot_layout: ClassVar[BootLayout] = layout.BOOT_LAYOUT

    def slots(self, segments: int) -> range:
        """Return all slots but that of the host bridge."""
        return range(layout.FIRST_DEVICE_SLOT, segments * layout.PCI_SLOTS)

    def ram_ranges(self, memory_bytes: int) -> list[tuple[int, int]]:
        """Return one range below the PCI hole, and one from 4 GiB up."""
        return layout.ram_ranges(memory_bytes)

    def hot_ranges(
        self, memory_bytes: int, hot_bytes: int, *, by_blocks: bool
    ) -> list[tuple[int, int, int]]:
        """Return one range above all other memory, in blocks or in steps of a memory module."""
        step = layout.plugged_block_bytes(hot_bytes) if by_blocks else DIMM_STEP_BYTES
        return layout.hot_ranges(memory_bytes, hot_bytes, step)

    def memory_map(self, memory_bytes: int, segments: int = 1) -> list[E820Entry]:
        """Return the map that the BIOS of a PC would return (INT 15h, E820h)."""
        return layout.e820(memory_bytes, segments)

    def make_ready(self, kvm: Kvm) -> None:
        """Make a VM with interrupt controllers. KVM's timer alone takes it 3 to 15 ms."""
        from crosvm_py.machine.x86_64.machine import create_interrupt_controllers, create_vm

        vm = create_vm(kvm)
        create_interrupt_controllers(vm)
        kvm.ready_vm = vm

    def make_machine(
        self,
        kvm: Kvm,
        memory: GuestMemory,
        loop: EventLoop,
        lock: RLock,
        events: MachineEvents,
        pci_weights: Sequence[int] = (1,),
    ) -> Board:
        """Build a PC."""
        # Imported here, because only the vmm needs it, and the warden is forked before.
        from crosvm_py.machine.x86_64.machine import Machine

        return Machine(kvm, memory, loop, lock, events, pci_weights)


X86_64: Final = X86()
