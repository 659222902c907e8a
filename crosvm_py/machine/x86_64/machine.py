# SPDX-License-Identifier: BSD-3-Clause
"""The x86-64 machine: KVM's part of it, the buses, and every device that is not virtio.

Owns the VM, its vCPUs and the emulated board. Device processes are plugged in as PCI functions.
"""

from __future__ import annotations

import os
import threading

from crosvm_py.machine.irq_routes import IrqRoutes, KvmIrqLine
from crosvm_py.machine.vcpu import VcpuSet
from crosvm_py.machine.x86_64 import layout
from crosvm_py.machine.x86_64.acpi.tables import write_acpi_tables
from crosvm_py.machine.x86_64.clocks import GuestClocks
from crosvm_py.machine.x86_64.cpuid import CpuidTemplate, physical_address_bits
from crosvm_py.machine.x86_64.mptable import write_mptable
from crosvm_py.machine.x86_64.msrs import set_boot_msrs
from crosvm_py.machine.x86_64.regs import configure_boot_vcpu, set_local_interrupts
from devices.acpi_pm import PM1_LENGTH, AcpiPm
from devices.bus import Bus
from devices.cmos import Cmos
from devices.i8042 import I8042
from devices.irq_line import SharedIrqLine
from devices.pci.bar import BarWindow
from devices.pci.root import ConfigPorts, Ecam, PciRoot
from devices.pvpanic import PVPANIC_LENGTH, PvPanic
from devices.virtio.transport.pci_transport import PciServices, VirtioPciTransport
from kernel_loader.load import load_linux
from kvm.vm import KVM_CAP_TSC_DEADLINE_TIMER, host_has_hardware_virtualization
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.vcpu_exit import VmExitReason
    from devices.virtio.backend import VirtioBackend
    from kernel_loader.load import BootPlan
    from kvm.vcpu import Vcpu
    from kvm.vm import Kvm, Vm
    from sys_util.event_loop import EventLoop, Timer
    from sys_util.guest_memory import GuestMemory

SEED_BYTES: Final = 64


class MachineEvents(NamedTuple):
    """What the guest does to its machine; called in a vCPU thread, with the device-model lock."""

    on_reset: Callable[[], None]
    on_power_off: Callable[[], None]
    on_panic: Callable[[], None]


class _KvmIoEventFds:
    """``IoEventFds`` of the transports, in guest-physical memory."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def register(self, address: int, eventfd: int) -> None:
        self._vm.register_ioeventfd(eventfd, address)

    def unregister(self, address: int, eventfd: int) -> None:
        self._vm.unregister_ioeventfd(eventfd, address)


class Machine:
    """One machine, from its parts to its running vCPUs."""

    def __init__(
        self, kvm: Kvm, memory: GuestMemory, loop: EventLoop, events: MachineEvents
    ) -> None:
        """Build the board; the caller keeps ``kvm`` and ``memory`` open as long as this lives.

        Raises:
            HostError: KVM refuses a part.
        """
        self.lock = threading.RLock()
        self.pio = Bus("port I/O", self.lock)
        self.mmio = Bus("memory-mapped I/O", self.lock)
        self.vm = kvm.create_vm()
        self._kvm = kvm
        self._memory = memory
        self._loop = loop
        self._transports: list[VirtioPciTransport] = []
        self._vcpus: list[Vcpu] = []
        self._create_kernel_parts()
        self._pci = PciRoot()
        self._services = PciServices(
            BarWindow(self.mmio, layout.PCI_MMIO_GPA, layout.PCI_MMIO_GPA + layout.PCI_MMIO_BYTES),
            IrqRoutes(self.vm),
            _KvmIoEventFds(self.vm),
        )
        self._intx = {gsi: SharedIrqLine(KvmIrqLine(self.vm, gsi)) for gsi in layout.PCI_INTX_GSIS}
        self._power = AcpiPm(KvmIrqLine(self.vm, layout.SCI_IRQ), events.on_power_off)
        self._insert_board(events)

    def _create_kernel_parts(self) -> None:
        vm = self.vm
        # Memory first: a new slot waits for every reader of the slots and I/O buses, and right
        # after the interrupt controllers joined a bus that takes KVM 7 ms, before it none.
        for slot, (region, mapping) in enumerate(self._memory.mappings):
            vm.add_memory(slot, region.gpa, mapping)
        vm.set_identity_map_address(layout.IDENTITY_MAP_GPA)
        vm.set_tss_address(layout.TSS_GPA)
        vm.create_irqchip()
        vm.create_pit2()

    def _insert_board(self, events: MachineEvents) -> None:
        low, *high = (region.size_bytes for region in self._memory.regions)
        cmos = Cmos(
            KvmIrqLine(self.vm, layout.CMOS_IRQ),
            self._call_later_locked,
            low_bytes=low,
            high_bytes=sum(high),
        )
        for base, count, device in (
            (layout.I8042_PORT, layout.I8042_PORT_COUNT, I8042(events.on_reset)),
            (layout.CMOS_PORT, layout.CMOS_PORT_COUNT, cmos),
            (layout.PVPANIC_PORT, PVPANIC_LENGTH, PvPanic(events.on_panic)),
            (layout.ACPI_PM1_EVENT_PORT, PM1_LENGTH, self._power),
            (
                layout.PCI_CONFIG_PORT,
                layout.PCI_CONFIG_PORT_COUNT,
                ConfigPorts(self._pci, events.on_reset),
            ),
        ):
            self.pio.insert(base, count, device)
        self.mmio.insert(layout.ECAM_GPA, layout.ECAM_BYTES, Ecam(self._pci))

    def _call_later_locked(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call a device back as its rule is: with the device-model lock held."""

        def locked() -> None:
            with self.lock:
                callback()

        return self._loop.call_later(seconds, locked)

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory, which stays its maker's."""
        return self._memory

    def isa_irq_line(self, irq: int) -> KvmIrqLine:
        """Return a line of the legacy interrupt controllers, for one device."""
        return KvmIrqLine(self.vm, irq)

    def plug(self, backend: VirtioBackend) -> VirtioPciTransport:
        """Give a virtio device the next PCI slot.

        Raises:
            ConfigError: every slot is taken.
        """
        slot = layout.FIRST_DEVICE_SLOT + len(self._transports)
        if slot >= layout.PCI_SLOTS:
            limit = layout.MAX_DEVICES
            raise ConfigError(f"{backend.name}: the machine has {limit} slots for devices")
        gsi = layout.pci_intx_gsi(slot, 0)
        transport = VirtioPciTransport(backend, self._services, self._intx[gsi].add_source(), gsi)
        self._pci.add(slot, transport)
        self._transports.append(transport)

        def pass_interrupt(_events: int) -> None:
            with self.lock:
                transport.on_intx_event()

        self._loop.add(transport.intx_fd, pass_interrupt)
        return transport

    def load(self, plan: BootPlan, cpus: int) -> None:
        """Write the kernel and the firmware's tables into memory, and make the vCPUs for it."""
        memory = self._memory
        rsdp_gpa = write_acpi_tables(memory, cpus)
        write_mptable(memory, cpus)
        entry = load_linux(memory, plan, rsdp_gpa=rsdp_gpa, seed=os.urandom(SEED_BYTES))
        self._make_vcpus(cpus)
        configure_boot_vcpu(self._vcpus[0], memory, entry)

    def _make_vcpus(self, cpus: int) -> None:
        """Make the vCPUs; all but the first wait for their start-up IPI, as KVM makes them."""
        supported = self._kvm.supported_cpuid()
        deadline_timer = bool(self._kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER))
        template = CpuidTemplate(supported, cpus, tsc_deadline_timer=deadline_timer)
        address_bits = physical_address_bits(supported)
        for index in range(cpus):
            vcpu = self.vm.create_vcpu(index)
            self._vcpus.append(vcpu)
            vcpu.set_cpuid(template.for_vcpu(index))
            set_boot_msrs(vcpu, address_bits)
            set_local_interrupts(vcpu)

    def make_vcpu_set(self, on_exit: Callable[[int, VmExitReason], None]) -> VcpuSet:
        """Return the vCPUs, ready to start."""
        return VcpuSet(
            self._vcpus,
            self.pio,
            self.mmio,
            on_exit,
            hardware_virtualization=host_has_hardware_virtualization(),
        )

    def make_clocks(self) -> GuestClocks:
        """Return the guest's clocks, to hold them while the vCPUs stand still."""
        return GuestClocks(self.vm, self._vcpus)

    def press_power_button(self) -> None:
        """Tell the guest that somebody pressed the power button."""
        with self.lock:
            self._power.press_power_button()

    def close(self) -> None:
        """Take everything apart; the vCPU threads have ended."""
        for transport in self._transports:
            self._loop.remove(transport.intx_fd)
            transport.close()
        for vcpu in self._vcpus:
            vcpu.close()
        self.vm.close()
