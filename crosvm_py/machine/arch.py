# SPDX-License-Identifier: BSD-3-Clause
"""The interface between the vmm and the machine of one architecture."""

from __future__ import annotations

from seccomp.syscalls import machine_arch
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import RLock

    from crosvm_py.machine.board import Board, MachineEvents
    from kernel_loader.boot_params import E820Entry
    from kernel_loader.load import BootLayout
    from kvm.vm import Kvm
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory


class Arch(Protocol):
    """One architecture. The modules of its machine are imported by ``make_machine``."""

    @property
    def boot_layout(self) -> BootLayout:
        """Where the kernel's loader may write."""
        ...

    def slots(self, segments: int) -> range:
        """Return the PCI slots for devices, as ``devices.pci.address`` numbers them."""
        ...

    def ram_ranges(self, memory_bytes: int) -> list[tuple[int, int]]:
        """Return guest memory of this size as ranges of (gpa, bytes).

        Raises:
            ConfigError: the machine cannot have so much, or so little.
        """
        ...

    def hot_ranges(
        self, memory_bytes: int, hot_bytes: int, *, by_blocks: bool
    ) -> list[tuple[int, int, int]]:
        """Return memory that can come later as (gpa, bytes, block bytes), above the other.

        Its blocks are those of virtio-mem if it comes and goes ``by_blocks``.

        Raises:
            ConfigError: the machine cannot have so much.
        """
        ...

    def memory_map(self, memory_bytes: int, segments: int = 1) -> list[E820Entry]:
        """Return the memory map that is passed to a guest with so many PCI segments.

        Raises:
            ConfigError: as ``ram_ranges``.
        """
        ...

    def make_ready(self, kvm: Kvm) -> None:
        """Make all of a VM that is the same in every machine, so that ``make_machine`` need not.

        Raises:
            HostError: KVM refuses a part.
        """
        ...

    def make_machine(
        self,
        kvm: Kvm,
        memory: GuestMemory,
        loop: EventLoop,
        lock: RLock,
        events: MachineEvents,
        pci_weights: Sequence[int] = (1,),
    ) -> Board:
        """Build the machine; the caller keeps ``kvm`` and ``memory`` open until it is closed.

        ``lock`` is held around every call of a device. For each PCI segment ``pci_weights`` has its
        share of the addresses below 4 GiB.

        Raises:
            HostError: KVM refuses a part.
        """
        ...


def host_arch() -> Arch:
    """Return the architecture of this host; its guests have the same.

    Raises:
        HostError: we have no machine for it.
    """
    name = machine_arch()
    if name == "x86_64":
        from crosvm_py.machine.x86_64.arch import X86_64

        return X86_64
    raise HostError("run a VM on", name, "crosvm-py has a machine for x86_64 only")
