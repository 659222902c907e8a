# SPDX-License-Identifier: BSD-3-Clause
"""The smallest machine that runs a bare-metal guest: KVM, memory, a serial line, a reset port."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from crosvm_py.config import one_package
from crosvm_py.exit_status import VmExit
from crosvm_py.machine.vcpu import VcpuSet
from crosvm_py.machine.vcpu_exit import VmExitReason
from crosvm_py.machine.x86_64.cpuid import CpuidTemplate, physical_address_bits
from crosvm_py.machine.x86_64.layout import (
    COM_PORT_COUNT,
    COM_PORTS,
    IDENTITY_MAP_GPA,
    RESET_PORT,
    TSS_GPA,
)
from crosvm_py.machine.x86_64.msrs import set_boot_msrs
from crosvm_py.machine.x86_64.regs import configure_boot_vcpu, set_local_interrupts
from devices.bus import Bus
from kvm.vm import Kvm
from kvm.x86_64 import X86Vm, supported_cpuid
from sys_util.guest_memory import GuestMemory
from tests.kernel_loader.images import open_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kernel_loader.image import EntryProtocol

MEMORY_BYTES: Final = 8 << 20
# A guest here needs milliseconds; the rest is for a machine that is busy with other things.
PATIENCE_SECONDS: Final = 60.0
ZERO_PAGE_GPA: Final = 0x7000

LSR_OFFSET: Final = 5
LSR_TRANSMITTER_EMPTY: Final = 0x60


class Entry(NamedTuple):
    protocol: EntryProtocol
    rip: int
    boot_data_gpa: int


class Uart:
    """Keep what the guest prints; ``wait_for`` waits until it printed something."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.on_write: Callable[[], None] | None = None
        self._changed = threading.Condition()

    def read(self, offset: int, _size: int) -> int:
        return LSR_TRANSMITTER_EMPTY if offset == LSR_OFFSET else 0

    def write(self, offset: int, _size: int, value: int) -> None:
        if offset == 0:
            if self.on_write is not None:
                self.on_write()
            with self._changed:
                self.output.append(value)
                self._changed.notify_all()

    def wait_for(self, text: bytes) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: text in self.output, PATIENCE_SECONDS)


class ResetPort:
    """Tell the machine that the guest asked for a reset."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self, _offset: int, _size: int) -> int:
        return 0

    def write(self, _offset: int, _size: int, value: int) -> None:
        if value & 4:
            self._machine.end(VmExitReason(VmExit.RESET, "reset port"))


class BrokenDevice:
    """A device with a bug."""

    def read(self, _offset: int, _size: int) -> int:
        raise ZeroDivisionError("a bug in a device")

    def write(self, offset: int, size: int, _value: int) -> None:
        self.read(offset, size)


class Machine:
    """One VM with ``cpus`` vCPUs, a kernel in memory, and the boot processor at its entry."""

    def __init__(self, kernel: Path, cpus: int = 1) -> None:
        self.reasons: list[VmExitReason] = []
        self._ended = threading.Event()
        self.uart = Uart()
        lock = threading.RLock()
        self.pio = Bus("pio", lock)
        self.mmio = Bus("mmio", lock)
        self.pio.insert(COM_PORTS[0], COM_PORT_COUNT, self.uart)
        self.pio.insert(RESET_PORT, 1, ResetPort(self))
        self._kvm = Kvm.open()
        self.vm = self._kvm.create_vm(X86Vm)
        self.vm.set_tss_address(TSS_GPA)
        self.vm.set_identity_map_address(IDENTITY_MAP_GPA)
        self.vm.create_irqchip()
        self.vm.create_pit2()
        self.memory = GuestMemory.create([(0, MEMORY_BYTES)])
        for slot, (region, mapping) in enumerate(self.memory.mappings):
            self.vm.add_memory(slot, region.gpa, mapping)
        supported = supported_cpuid(self._kvm)
        template = CpuidTemplate(supported, one_package(cpus), tsc_deadline_timer=True)
        self.vcpus = [self.vm.create_vcpu(index) for index in range(cpus)]
        for vcpu in self.vcpus:
            vcpu.set_cpuid(template.for_vcpu(vcpu.index))
            set_boot_msrs(vcpu, physical_address_bits(supported))
            set_local_interrupts(vcpu)
        image = open_kernel(str(kernel))
        image.place(self.memory)
        entry = Entry(image.protocol, image.entry, ZERO_PAGE_GPA)
        configure_boot_vcpu(self.vcpus[0], self.memory, entry)
        image.close()
        self.threads = VcpuSet(
            self.vcpus, self.pio, self.mmio, lambda _index, reason: self.end(reason)
        )

    def end(self, reason: VmExitReason) -> None:
        self.reasons.append(reason)
        self._ended.set()

    def run(self) -> VmExitReason:
        """Run until the guest ends the VM."""
        self.threads.start()
        return self.wait()

    def wait(self) -> VmExitReason:
        """Wait for the end."""
        if not self._ended.wait(PATIENCE_SECONDS):
            return VmExitReason(VmExit.WATCHDOG, f"no end; output {bytes(self.uart.output)!r}")
        return self.reasons[0]

    def close(self) -> None:
        stopped = self.threads.stop(PATIENCE_SECONDS)
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.memory.close()
        self._kvm.close()
        assert stopped, "a vCPU thread is stuck"
