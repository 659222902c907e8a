# SPDX-License-Identifier: BSD-3-Clause
"""The x86-64 machine: KVM's interrupt chips, the devices that are not virtio, and the boot."""

from __future__ import annotations

import os

from crosvm_py.config import one_package
from crosvm_py.machine.board import Board, PciPlace
from crosvm_py.machine.irq_routes import KvmIrqLine
from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi.madt import AcpiCpu
from crosvm_py.machine.x86_64.acpi.tables import write_acpi_tables
from crosvm_py.machine.x86_64.clocks import GuestClocks
from crosvm_py.machine.x86_64.cpuid import CpuidTemplate, physical_address_bits
from crosvm_py.machine.x86_64.irqchip import chip_wiring
from crosvm_py.machine.x86_64.mptable import write_mptable
from crosvm_py.machine.x86_64.msrs import set_boot_msrs
from crosvm_py.machine.x86_64.regs import (
    configure_boot_vcpu,
    set_local_interrupts,
    write_boot_tables,
)
from devices.acpi_pm import PM1_LENGTH, AcpiPm
from devices.cmos import Cmos
from devices.i8042 import I8042
from devices.pci.root import ConfigPorts
from devices.pvpanic import PVPANIC_LENGTH, PvPanic
from kernel_loader.load import load_linux
from kvm.x86_64 import (
    KVM_CAP_TSC_DEADLINE_TIMER,
    REQUIRED_EXTENSIONS,
    X86Vcpu,
    X86Vm,
    supported_cpuid,
)
from kvm.x86_core import core_notes
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from threading import RLock

    from crosvm_py.config import CpuSpec, MemoryZone, NumaNode
    from crosvm_py.machine.board import Clocks, MachineEvents
    from crosvm_py.machine.cpu_hotplug import CpuHotPlug
    from crosvm_py.machine.hotplug import HotPlug
    from crosvm_py.machine.x86_64.acpi.numa import AcpiNodes
    from crosvm_py.machine.x86_64.start import MachineStart
    from devices.ged import EventDevice
    from devices.watchdog import Watchdog
    from kernel_loader.load import BootPlan, EntryPoint
    from kvm.vm import Kvm
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory

SEED_BYTES: Final = 64

# A message to the local APICs of all vCPUs, with the delivery mode NMI (Intel SDM vol. 3 §11.11).
_MSI_TO_ALL: Final = layout.LAPIC_GPA | 0xFF << 12
_MSI_NMI: Final = 0b100 << 8


def _pci(windows: Sequence[tuple[int, int]]) -> PciPlace:
    return PciPlace(
        windows=windows,
        ecam_gpa=layout.ECAM_GPA,
        ecam_bytes=layout.ECAM_BYTES,
        intx_gsis=layout.PCI_INTX_GSIS,
        intx_gsi=layout.pci_intx_gsi,
        slots=range(layout.FIRST_DEVICE_SLOT, len(windows) * layout.PCI_SLOTS),
    )


def create_vm(kvm: Kvm) -> X86Vm:
    """Create a VM of x86 without memory and interrupt controllers.

    Raises:
        HostError: KVM refuses it, or lacks what every PC needs.
    """
    kvm.require(REQUIRED_EXTENSIONS)
    return kvm.create_vm(X86Vm)


def create_interrupt_controllers(vm: X86Vm) -> None:
    """Have KVM make what ``Machine`` has of it beside memory and vCPUs.

    Raises:
        HostError: KVM refuses a part.
    """
    vm.set_identity_map_address(layout.IDENTITY_MAP_GPA)
    vm.set_tss_address(layout.TSS_GPA)
    vm.create_irqchip()
    vm.create_pit2()


def _add_hotplug(board: Board, on_eject: Callable[[int], None], segments: int) -> HotPlug:
    """Put the registers that the AML of ``acpi/hotplug.py`` uses on the bus."""
    from crosvm_py.machine.hotplug import HotPlug
    from devices.ged import GED_BYTES, EventDevice
    from devices.pci.hotplug import HOTPLUG_BYTES, PciHotplugController

    controller = PciHotplugController(on_eject, segments)
    events = EventDevice(board.irq_line(layout.GED_GSI))
    board.mmio.insert(layout.PCI_HOTPLUG_GPA, HOTPLUG_BYTES, controller)
    board.mmio.insert(layout.GED_GPA, GED_BYTES, events)
    board.parts += (controller, events)
    return HotPlug(board.lock, controller, events)


def _add_cpu_hotplug(board: Board, events: EventDevice, present: int, most: int) -> CpuHotPlug:
    """Put the registers that the AML of ``acpi/cpus.py`` uses on the bus."""
    from crosvm_py.machine.cpu_hotplug import CpuHotPlug
    from devices.cpu_hotplug import CPU_HOTPLUG_BYTES

    hotplug = CpuHotPlug(board.lock, events, board.call_soon, present, most)
    board.mmio.insert(layout.CPU_HOTPLUG_GPA, CPU_HOTPLUG_BYTES, hotplug.controller)
    board.parts.append(hotplug)
    return hotplug


class Machine(Board):
    """A PC with the same devices and addresses as crosvm's."""

    def __init__(
        self,
        kvm: Kvm,
        memory: GuestMemory,
        loop: EventLoop,
        lock: RLock,
        events: MachineEvents,
        pci_weights: Sequence[int] = (1,),
    ) -> None:
        """Build the board; see ``Board`` and ``Arch.make_machine``."""
        self._windows = layout.pci_windows(pci_weights)
        ready = kvm.ready_vm
        self._is_ready = isinstance(ready, X86Vm)
        self._x86 = ready if isinstance(ready, X86Vm) else create_vm(kvm)
        self._x86_vcpus: list[X86Vcpu] = []
        self._topology = one_package(1)
        self._kvm = kvm
        self._start: MachineStart | None = None
        self._refill: Callable[[], EntryPoint]
        super().__init__(self._x86, memory, loop, lock, _pci(self._windows), chip_wiring())
        self._power = AcpiPm(KvmIrqLine(self.vm, layout.SCI_IRQ), events.on_power_off)
        self._insert_board(events)
        self._has_dimm_slots = False
        self._watchdog: Watchdog | None = None
        self._nodes: AcpiNodes | None = None
        if events.on_eject is not None:
            self.hotplug = _add_hotplug(self, events.on_eject, len(self._windows))

    def add_dimm_slots(self) -> None:
        """Put the registers that the AML of ``acpi/memory.py`` uses on the bus."""
        from crosvm_py.machine.growth import Dimms
        from devices.memory_hotplug import MEMORY_HOTPLUG_BYTES, MemoryHotplugController

        if self.hotplug is None:
            raise ValueError("memory modules on a machine without hot-plug")
        controller = MemoryHotplugController()
        self.mmio.insert(layout.MEMORY_HOTPLUG_GPA, MEMORY_HOTPLUG_BYTES, controller)
        (area,) = self._memory.hot_areas
        self.growth = dimms = Dimms(self.vm, area, self.memory_bytes, controller, self.hotplug)
        self.parts.append(dimms)
        self._has_dimm_slots = True

    def add_watchdog(self, on_expire: Callable[[float], None]) -> None:
        """Put the registers that the table of ``acpi/wdat.py`` describes on the bus."""
        from devices.watchdog import WATCHDOG_BYTES, Watchdog

        self._watchdog = watchdog = Watchdog(self._call_later_locked, on_expire)
        self.mmio.insert(layout.WATCHDOG_GPA, WATCHDOG_BYTES, watchdog)
        self.parts.append(watchdog)

    def add_nodes(self, nodes: Sequence[NumaNode], zones: Sequence[MemoryZone]) -> None:
        """Have the tables divide CPUs, memory and PCI segments among NUMA nodes."""
        from crosvm_py.machine.x86_64.acpi.numa import acpi_nodes

        self._nodes = acpi_nodes(nodes, zones, self._memory.regions)

    def _create_interrupt_controllers(self) -> None:
        if not self._is_ready:
            create_interrupt_controllers(self._x86)

    def _insert_board(self, events: MachineEvents) -> None:
        low, *high = (region.size_bytes for region in self._memory.boot_regions)
        cmos = Cmos(
            KvmIrqLine(self.vm, layout.CMOS_IRQ),
            self._call_later_locked,
            low_bytes=low,
            high_bytes=sum(high),
        )
        i8042 = I8042(events.on_reset)
        config_ports = ConfigPorts(self._segments[0].root, events.on_reset)
        for base, count, device in (
            (layout.I8042_PORT, layout.I8042_PORT_COUNT, i8042),
            (layout.CMOS_PORT, layout.CMOS_PORT_COUNT, cmos),
            (layout.PVPANIC_PORT, PVPANIC_LENGTH, PvPanic(events.on_panic)),
            (layout.ACPI_PM1_EVENT_PORT, PM1_LENGTH, self._power),
            (layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORT_COUNT, config_ports),
        ):
            self.pio.insert(base, count, device)
        self.parts += (i8042, cmos, self._power, config_ports)

    def load(self, plan: BootPlan, cpus: int, spec: CpuSpec, *, restartable: bool = False) -> None:
        """Write the kernel and the firmware's tables into memory, and make the vCPUs."""
        hotplug = self.hotplug
        made = cpus if hotplug is None else max(cpus, spec.most)
        if hotplug is not None and made > cpus:
            self.cpu_hotplug = _add_cpu_hotplug(self, hotplug.events, cpus, made)
        self._topology = spec.topology or one_package(made)
        self._make_vcpus(made, spec.address_bits)
        entry = self._fill_memory(plan, keep=restartable)
        configure_boot_vcpu(self._x86_vcpus[0], self._memory, entry)
        if restartable:
            from crosvm_py.machine.x86_64.start import MachineStart

            self._start = MachineStart(self._kvm, self._x86, self._x86_vcpus)
            self._refill = lambda: self._fill_memory(plan, keep=True)

    def _fill_memory(self, plan: BootPlan, *, keep: bool) -> EntryPoint:
        """Write the tables, kernel and initrd into memory, which is zero."""
        rsdp_gpa = self._write_tables()
        seed = os.urandom(SEED_BYTES)
        return load_linux(self._memory, plan, rsdp_gpa=rsdp_gpa, seed=seed, keep=keep)

    def _write_tables(self) -> int:
        """Write the firmware's tables with the present CPUs; return the address of the RSDP."""
        hotplug = self.cpu_hotplug
        present = range(len(self._vcpus)) if hotplug is None else hotplug.present
        cpus = [
            AcpiCpu(cpu.index, self._topology.apic_id(cpu.index), cpu.index in present)
            for cpu in self._x86_vcpus
        ]
        nodes = self._nodes
        if nodes is not None:
            cpus = [cpu._replace(node=nodes.cpus.get(cpu.number, 0)) for cpu in cpus]
        rsdp_gpa = write_acpi_tables(
            self._memory,
            cpus,
            hotplug=self.hotplug is not None,
            hot_cpus=hotplug is not None,
            dimms=self._has_dimm_slots,
            windows=self._windows,
            watchdog=self._watchdog is not None,
            nodes=nodes,
        )
        write_mptable(self._memory, [cpu.apic_id for cpu in cpus if cpu.enabled])
        return rsdp_gpa

    def restart(self) -> None:
        """Return everything but the virtio devices to its start, and load the kernel again."""
        if self._start is None:
            raise HostError("restart", "the machine", "its start was not kept")
        self.reset_parts()
        self._start.restore()
        self._memory.clear()
        write_boot_tables(self._memory, self._refill())

    def core_notes(self, absent: Container[int]) -> bytes:
        """Return the notes for a core file about all vCPUs but the ``absent``.

        Raises:
            HostError: KVM does not tell their registers.
        """
        return b"".join(core_notes(each) for each in self._x86_vcpus if each.index not in absent)

    def _make_vcpus(self, cpus: int, most_address_bits: int) -> None:
        """Make the vCPUs. KVM makes all but the first wait for their start-up IPI."""
        supported = supported_cpuid(self._kvm)
        deadline_timer = bool(self._kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER))
        address_bits = physical_address_bits(supported, most_address_bits)
        template = CpuidTemplate(
            supported,
            self._topology,
            tsc_deadline_timer=deadline_timer,
            address_bits=address_bits,
        )
        for index in range(cpus):
            apic_id = self._topology.apic_id(index)
            vcpu = self._x86.create_vcpu(index, apic_id)
            self._vcpus.append(vcpu)
            self._x86_vcpus.append(vcpu)
            vcpu.set_cpuid(template.for_vcpu(apic_id))
            set_boot_msrs(vcpu, address_bits)
            set_local_interrupts(vcpu)

    def make_clocks(self) -> Clocks:
        """Return the guest's clocks, so that a suspension can stop them."""
        clocks = GuestClocks(self._x86, self._x86_vcpus)
        if self._watchdog is None:
            return clocks
        from crosvm_py.machine.watchdog import ClocksAndWatchdog

        return ClocksAndWatchdog(clocks, self._watchdog, self.lock)

    def inject_nmi(self) -> None:
        """Send every vCPU a non-maskable interrupt, as a message to all local APICs."""
        self.vm.signal_msi(_MSI_TO_ALL, _MSI_NMI)

    def press_power_button(self) -> None:
        """Tell the guest that somebody pressed the power button."""
        with self.lock:
            self._power.press_power_button()
