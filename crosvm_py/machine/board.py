# SPDX-License-Identifier: BSD-3-Clause
"""What the machine of every architecture has: KVM's VM, memory, buses, PCI, and its vCPUs.

The machine of one architecture is a subclass of ``Board``. It adds interrupt controllers, devices
that are not virtio, and the boot of the guest. ``arch`` finds the subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from crosvm_py.machine.irq_routes import IrqRoutes, KvmIrqLine
from crosvm_py.machine.vcpu import VcpuSet
from crosvm_py.machine.vcpu_runner import RunnableVcpu
from devices.bus import Bus
from devices.irq_line import SharedIrqLine
from devices.pci.address import SEGMENT_SLOTS, pci_address
from devices.pci.bar import BarWindow
from devices.pci.root import Ecam, PciRoot
from devices.virtio.transport.pci_transport import PciServices, VirtioPciTransport
from kvm.vm import host_has_hardware_virtualization
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from threading import RLock

    from crosvm_py.config import CpuSpec, MemoryZone, NumaNode
    from crosvm_py.machine.cpu_hotplug import CpuHotPlug
    from crosvm_py.machine.growth import Growth, PluggedMemory
    from crosvm_py.machine.hotplug import HotPlug
    from crosvm_py.machine.irq_routes import ChipWiring
    from crosvm_py.machine.vcpu_exit import VmExitReason
    from devices.virtio.backend import VirtioBackend
    from kernel_loader.load import BootPlan
    from kvm.vm import Vm
    from sys_util.event_loop import EventLoop, Timer
    from sys_util.guest_memory import GuestMemory, MemoryRegion


class PciPlace(NamedTuple):
    """Where an architecture has PCI: its windows in guest-physical memory, lines and slots.

    ``windows`` has (gpa, bytes) for the BARs of each segment. The ECAM of segment 0 is at
    ``ecam_gpa``, and each other one behind that of the segment before. ``intx_gsi(slot, pin)``
    returns the line for INTA# (pin 0) to INTD# (pin 3) of a slot; it is one of ``intx_gsis``.
    ``slots`` have the numbers of ``devices.pci.address``.
    """

    windows: Sequence[tuple[int, int]]
    ecam_gpa: int
    ecam_bytes: int
    intx_gsis: tuple[int, ...]
    intx_gsi: Callable[[int, int], int]
    slots: range


class _Segment(NamedTuple):
    """One PCI segment: its bus, and what its devices get of the machine."""

    root: PciRoot
    services: PciServices


class Part(Protocol):
    """A part of the machine that is not virtio, which a reset of the machine resets."""

    def reset(self) -> None:
        """Return to the state in which the machine starts.

        The caller holds the device-model lock. No vCPU runs, and no device uses guest memory.
        """
        ...


class Clocks(Protocol):
    """The guest's clocks, which are stopped while the VM is suspended."""

    def hold(self) -> None:
        """Remember the time of the clocks; the vCPUs are paused."""

    def go_on(self) -> None:
        """Set the clocks to the remembered time; the vCPUs run next."""


class MachineEvents(NamedTuple):
    """Called when the guest resets, powers off or panics, or has let the device in a slot go.

    The caller is a vCPU thread that holds the device-model lock. Without ``on_eject`` no device can
    be plugged in or removed while the guest runs.
    """

    on_reset: Callable[[], None]
    on_power_off: Callable[[], None]
    on_panic: Callable[[], None]
    on_eject: Callable[[int], None] | None = None


class _KvmIoEventFds:
    """``IoEventFds`` of the transports, in guest-physical memory."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def register(self, address: int, eventfd: int) -> None:
        self._vm.register_ioeventfd(eventfd, address)

    def unregister(self, address: int, eventfd: int) -> None:
        self._vm.unregister_ioeventfd(eventfd, address)


class BoardVcpu(RunnableVcpu, Protocol):
    """The part of a ``kvm.vcpu.Vcpu`` that the board needs."""

    def close(self) -> None:
        """Close its descriptors."""
        ...


class Board(ABC):
    """One machine, from its parts to its running vCPUs. Owns the VM and the vCPUs."""

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        loop: EventLoop,
        lock: RLock,
        pci: PciPlace,
        wiring: ChipWiring,
    ) -> None:
        """Build the board; the caller keeps ``memory`` open until ``close``, which closes ``vm``.

        ``lock`` is held around every call of a device.

        Raises:
            HostError: KVM refuses a part.
        """
        self.lock = lock
        self.pio = Bus("port I/O", self.lock)
        self.mmio = Bus("memory-mapped I/O", self.lock)
        self.vm = vm
        self._memory = memory
        self._loop = loop
        self._transports: dict[int, VirtioPciTransport] = {}  # by slot
        self.hotplug: HotPlug | None = None
        self.growth: Growth | None = None
        self.cpu_hotplug: CpuHotPlug | None = None  # where vCPUs can come and go
        self.parts: list[Part] = []  # in the order in which a reset resets them
        self.ptys: tuple[tuple[str, str], ...] = ()  # of ports: place and path, for clients
        self._vcpus: list[BoardVcpu] = []
        # Add memory first. KVM waits for all readers of the memory slots and I/O buses when a slot
        # is added; that takes 7 ms if the interrupt controllers have just joined a bus.
        for slot, (region, mapping) in enumerate(memory.mappings):
            if not region.block_bytes:
                self.vm.add_memory(slot, region.gpa, mapping)
        self._create_interrupt_controllers()
        self._place = pci
        routes, ioeventfds = IrqRoutes(self.vm, wiring), _KvmIoEventFds(self.vm)
        self._segments = [
            _Segment(
                PciRoot(bridge=number == 0),
                PciServices(BarWindow(self.mmio, gpa, gpa + size_bytes), routes, ioeventfds),
            )
            for number, (gpa, size_bytes) in enumerate(pci.windows)
        ]
        self.parts += [segment.root for segment in self._segments]
        self._intx = {gsi: SharedIrqLine(KvmIrqLine(self.vm, gsi)) for gsi in pci.intx_gsis}
        for number, segment in enumerate(self._segments):
            ecam_gpa = pci.ecam_gpa + number * pci.ecam_bytes
            self.mmio.insert(ecam_gpa, pci.ecam_bytes, Ecam(segment.root))

    @abstractmethod
    def _create_interrupt_controllers(self) -> None:
        """Create KVM's interrupt controllers and timers, unless the VM has them; it has memory."""

    @abstractmethod
    def load(self, plan: BootPlan, cpus: int, spec: CpuSpec, *, restartable: bool = False) -> None:
        """Write the kernel and the firmware's tables into memory, and make the vCPUs.

        The guest has ``cpus`` of them. Others can come if there is ``hotplug``. With
        ``restartable`` the files of the plan stay open, and what ``restart`` needs is kept.
        """

    @abstractmethod
    def restart(self) -> None:
        """Return everything but the virtio devices to its start, and load the kernel again.

        Every vCPU is paused, and no device uses guest memory (``power_on_devices``).

        Raises:
            ConfigError: kernel or initrd have become shorter.
            HostError: the host refuses something.
        """

    @abstractmethod
    def make_clocks(self) -> Clocks:
        """Return the guest's clocks, so that a suspension can stop them."""

    @abstractmethod
    def add_dimm_slots(self) -> None:
        """Let memory grow by modules. Call it before ``load``, on a machine with hot-plug."""

    @abstractmethod
    def add_watchdog(self, on_expire: Callable[[float], None]) -> None:
        """Give the guest a watchdog timer. Call it before ``load``.

        ``on_expire`` is called in the loop's thread, with the device-model lock held, when the
        guest has not pinged the timer for so many seconds.
        """

    @abstractmethod
    def add_nodes(self, nodes: Sequence[NumaNode], zones: Sequence[MemoryZone]) -> None:
        """Tell the guest of NUMA nodes. Call it before ``load``.

        Zones lie behind each other in the memory of the start. What no node names belongs to node
        0, as does all memory that comes later.
        """

    def add_plugged_memory(self, requested_bytes: int) -> PluggedMemory:
        """Let memory grow and shrink by a device of virtio-mem. Call it before ``load``."""
        from crosvm_py.machine.growth import PluggedMemory

        (area,) = self._memory.hot_areas
        self.growth = memory = PluggedMemory(self.vm, area, self.memory_bytes, requested_bytes)
        self.parts.append(memory)
        return memory

    @abstractmethod
    def press_power_button(self) -> None:
        """Tell the guest that somebody pressed the power button."""

    @abstractmethod
    def inject_nmi(self) -> None:
        """Send every vCPU a non-maskable interrupt.

        Raises:
            HostError: KVM refuses it.
        """

    @abstractmethod
    def core_notes(self, absent: Container[int]) -> bytes:
        """Return the notes for a core file about all vCPUs but the ``absent``; all are paused.

        Raises:
            HostError: KVM does not tell their registers.
        """

    def irq_line(self, gsi: int) -> KvmIrqLine:
        """Return a pin of the interrupt controllers, for one device that is not virtio."""
        return KvmIrqLine(self.vm, gsi)

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory; whoever made it closes it."""
        return self._memory

    @property
    def memory_bytes(self) -> int:
        """How much memory the guest has now, whatever a balloon takes of it."""
        added = 0 if self.growth is None else self.growth.added_bytes
        return added + sum(region.size_bytes for region in self._memory.boot_regions)

    @property
    def present_regions(self) -> tuple[MemoryRegion, ...]:
        """The memory that the guest has now, in ascending order."""
        added = () if self.growth is None else self.growth.regions
        return (*self._memory.boot_regions, *added)

    @property
    def slots(self) -> range:
        """The PCI slots for devices, as ``devices.pci.address`` numbers them."""
        return self._place.slots

    def is_free(self, slot: int) -> bool:
        """Return whether no device is in a slot."""
        return slot not in self._transports

    def plug(self, backend: VirtioBackend, slot: int) -> VirtioPciTransport:
        """Put a virtio device into a PCI slot.

        Raises:
            ConfigError: the slot is in use, or there is no such slot.
        """
        if slot not in self.slots or not self.is_free(slot):
            raise ConfigError(f"{backend.name}: PCI slot {pci_address(slot)} is not free")
        number, at = divmod(slot, SEGMENT_SLOTS)
        segment, gsi = self._segments[number], self._place.intx_gsi(at, 0)
        with self.lock:
            line = self._intx[gsi].add_source()
            transport = VirtioPciTransport(backend, segment.services, line, gsi)
            segment.root.add(at, transport)
        self._transports[slot] = transport

        def pass_interrupt(_events: int) -> None:
            with self.lock:
                transport.on_intx_event()

        self._loop.add(transport.intx_fd, pass_interrupt)
        return transport

    def bar_gpa(self, slot: int) -> int:
        """Return the address of the BAR of the device in a slot, 0 if it is decoded nowhere."""
        with self.lock:
            transport = self._transports.get(slot)
            return 0 if transport is None else transport.bar_gpa

    def unplug(self, slot: int) -> None:
        """Take the device out of a slot. Its backend hears nothing of it. Call it in the loop."""
        transport = self._transports.pop(slot)
        self._loop.remove(transport.intx_fd)
        with self.lock:
            number, at = divmod(slot, SEGMENT_SLOTS)
            self._segments[number].root.remove(at)
            transport.close()

    def power_on_devices(self, then: Callable[[], None]) -> None:
        """Reset every virtio device; each has the registers of its start at once.

        ``then`` is called, once and in any thread, when no process uses guest memory any more. It
        must not wait.
        """
        with self.lock:
            transports = tuple(self._transports.values())
            left = len(transports)

            def one_done() -> None:
                nonlocal left
                left -= 1
                if not left:
                    then()

            for transport in transports:
                transport.power_on(one_done)
        if not transports:
            then()

    def reset_parts(self) -> None:
        """Reset every part. No vCPU runs, and no device uses guest memory."""
        with self.lock:
            for part in self.parts:
                part.reset()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in the loop's thread. Call it in any thread."""
        self._loop.call_soon_threadsafe(callback)

    def _call_later_locked(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back later, with the device-model lock held, as devices require."""

        def locked() -> None:
            with self.lock:
                callback()

        return self._loop.call_later(seconds, locked)

    def make_vcpu_set(self, on_exit: Callable[[int, VmExitReason], None]) -> VcpuSet:
        """Return the vCPUs, ready to start."""
        hotplug = self.cpu_hotplug
        vcpus = VcpuSet(
            self._vcpus,
            self.pio,
            self.mmio,
            on_exit,
            hardware_virtualization=host_has_hardware_virtualization(),
            absent=() if hotplug is None else hotplug.absent,
        )
        if hotplug is not None:
            hotplug.attach(vcpus)
        return vcpus

    def close(self) -> None:
        """Close all parts; the vCPU threads have ended."""
        for transport in self._transports.values():
            self._loop.remove(transport.intx_fd)
            transport.close()
        for vcpu in self._vcpus:
            vcpu.close()
        self.vm.close()
