# SPDX-License-Identifier: BSD-3-Clause
"""A virtio device on the PCI bus (virtio 1.3 §4.1), modern interface only.

It joins configuration space, one BAR with six regions, MSI-X and INTx, and the state of a device
whose backend is another process. Every call needs the device-model lock; none waits for anything.
"""

from __future__ import annotations

from devices.bus import all_ones
from devices.pci.bar import MemoryBar
from devices.pci.config_space import (
    PCI_COMMAND,
    PCI_COMMAND_INTX_DISABLE,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    PCI_INTERRUPT_LINE,
    PCI_INTERRUPT_PIN,
    PCI_INTERRUPT_PIN_A,
    ConfigSpace,
    PciIdentity,
)
from devices.pci.msix import Msix
from devices.virtio.backend import TransportQueue, TransportState
from devices.virtio.transport.common_config import CommonConfig
from devices.virtio.transport.device_state import DeviceState
from devices.virtio.transport.interrupts import Interrupts
from devices.virtio.transport.notify import NotifyRegion
from devices.virtio.transport.pci_capabilities import (
    BAR_BYTES,
    MSIX_PBA_OFFSET,
    MSIX_TABLE_OFFSET,
    NOTIFY_OFFSET,
    REGION_BYTES,
    VIRTIO_BAR,
    PciConfigWindow,
    add_virtio_capabilities,
)
from devices.virtio.transport.queue_state import check_backend
from sys_util.eventfd import is_signalled
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import BusDevice, IrqLine
    from devices.pci.bar import BarWindow
    from devices.pci.msix import MsiVectorRoutes
    from devices.virtio.backend import VirtioBackend
    from devices.virtio.transport.notify import IoEventFds
    from devices.virtio.transport.queue_state import QueueState

VIRTIO_VENDOR_ID: Final = 0x1AF4
VIRTIO_DEVICE_ID_BASE: Final = 0x1040
VIRTIO_REVISION: Final = 1

# PCI class codes by virtio device id. Drivers ignore them; lspci shows them.
_OTHER_CLASS: Final = 0x00FF00
_CLASS_CODES: Final = {
    1: 0x028000,  # network
    2: 0x018000,  # mass storage
    3: 0x078000,  # communication: console
    8: 0x010000,  # SCSI host
    9: 0x028000,  # 9P
    16: 0x038000,  # display: GPU
    18: 0x098000,  # input
    19: 0x078000,  # communication: vsock
    25: 0x040100,  # multimedia: sound
    26: 0x018000,  # file system
}


class PciServices(NamedTuple):
    """What a machine gives to every device on its PCI bus."""

    window: BarWindow
    routes: MsiVectorRoutes
    ioeventfds: IoEventFds


class VirtioPciTransport:
    """One virtio device, plugged into ``PciRoot`` as a function.

    ``irq`` is the first value of the interrupt line register; ``line`` is that line. When a queue
    is activated, its device process learns whether to signal a vector or ``intx_fd``. The driver
    may enable MSI-X later, but if it disables MSI-X while a queue runs, interrupts of it are lost.
    """

    def __init__(
        self, backend: VirtioBackend, services: PciServices, line: IrqLine, irq: int
    ) -> None:
        """Build the function; its BAR is not decoded and its device not started.

        Raises:
            ProtocolError: ``backend`` announces what no device can have.
        """
        check_backend(backend)
        queue_count = len(backend.queue_sizes)
        space = ConfigSpace(_identity(backend.device_type))
        self._space = space
        self._msix = Msix(queue_count + 1, services.routes)
        self._notify = NotifyRegion(queue_count, NOTIFY_OFFSET, services.ioeventfds)
        self._interrupts = Interrupts(space, self._msix, line)
        self._state = DeviceState(backend, self._interrupts, self._notify)
        self._common = CommonConfig(self._state)
        registers = BarRegisters(
            self._common,
            self._interrupts,
            self._state.config,
            self._notify,
            self._msix.table,
            self._msix.pba,
        )
        self._bar = MemoryBar(space, VIRTIO_BAR, registers, BAR_BYTES, services.window)
        self._bar.add_listener(self._notify)
        add_virtio_capabilities(space, queue_count)
        PciConfigWindow(space, registers)
        self._msix.add_capability(space, VIRTIO_BAR, MSIX_TABLE_OFFSET, MSIX_PBA_OFFSET)
        commands = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE
        space.set(PCI_COMMAND, 2, 0, writable=commands)
        space.set(PCI_INTERRUPT_LINE, 1, irq, writable=0xFF)
        space.set(PCI_INTERRUPT_PIN, 1, PCI_INTERRUPT_PIN_A)
        for register, length in (
            (PCI_COMMAND, 2),
            (self._bar.register, 4),
            (self._msix.control_register, 2),
        ):
            space.on_write(register, length, self._follow_registers)
        space.keep()

    @property
    def intx_fd(self) -> int:
        """The eventfd to poll for ``on_intx_event``; the transport still owns it."""
        return self._interrupts.intx_fd

    @property
    def bar_gpa(self) -> int:
        """Where the BAR is decoded now, 0 for nowhere."""
        return self._bar.address or 0

    @property
    def status(self) -> int:
        """The device status as the driver would read it."""
        return self._state.status

    def power_on(self, then: Callable[[], None]) -> None:
        """Return to the state in which the machine starts, and reset the device.

        ``then`` is called when the device's process has let go of guest memory, or has ended; it
        must not wait.
        """
        self._space.restore()
        self._follow_registers()
        self._msix.reset()
        self._common.reset()
        self._state.power_on(then)
        self._state.config.reset()

    def on_intx_event(self) -> None:
        """Pass on interrupts of a device process that has no MSI-X vector to signal."""
        if self._interrupts.take_intx_event() and self._state.active:
            self._interrupts.queues_used(self._state.intx_vectors())

    def read_config(self, offset: int, size: int) -> int:
        return self._space.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self._space.write(offset, size, value)

    def reset_done(self) -> None:
        self._state.reset_done()

    def queue_reset_done(self, index: int) -> None:
        self._state.queue_reset_done(index)

    def set_needs_reset(self) -> None:
        self._state.set_needs_reset()

    def config_changed(self, config: bytes) -> None:
        self._state.config_changed(config)

    def config_written(self, config: bytes) -> None:
        self._state.config_written(config)

    def describe(self) -> TransportState:
        """See ``BackendEvents``."""
        state, interrupts = self._state, self._interrupts
        return TransportState(
            status=state.status,
            driver_features=state.driver_features,
            bus_master=self._notify.bus_master,
            msix_enabled=self._msix.enabled,
            function_masked=self._msix.function_masked,
            config_vector=interrupts.config_vector,
            isr=interrupts.isr,
            intx_asserted=interrupts.intx_asserted,
            intx_signalled=is_signalled(interrupts.intx_fd),
            queues=tuple(self._describe_queue(queue) for queue in state.queues),
            vectors=self._msix.states(),
        )

    def _describe_queue(self, queue: QueueState) -> TransportQueue:
        desc_table, avail_ring, used_ring = queue.addresses
        kicks = self._notify.state(queue.index)
        return TransportQueue(
            size=queue.size,
            enabled=queue.enabled,
            resetting=queue.resetting,
            vector=queue.vector,
            uses_intx=queue.uses_intx,
            desc_table=desc_table,
            avail_ring=avail_ring,
            used_ring=used_ring,
            kicked=kicks.kicked,
            kick_held=kicks.held,
            direct=kicks.direct,
        )

    def backend_lost(self) -> None:
        """Give up the device: it needs a reset, and no negotiation of features succeeds."""
        self._state.backend_lost()

    def reactivate(self, backend: VirtioBackend) -> None:
        """Hand the device to a new process; queues that were active go on where they stopped.

        Raises:
            ProtocolError: the new process announces another device than the last one did.
        """
        self._state.reactivate(backend)

    def close(self) -> None:
        """Take the device off every bus and close its eventfds."""
        self._bar.close()
        self._notify.close()
        self._msix.close()
        self._interrupts.close()

    def _follow_registers(self) -> None:
        command = self._space.get(PCI_COMMAND, 2)
        bus_master = bool(command & PCI_COMMAND_MASTER)
        self._bar.decode(enabled=bool(command & PCI_COMMAND_MEMORY))
        self._notify.set_bus_master(enabled=bus_master)
        self._msix.update(bus_master=bus_master)
        self._interrupts.update_line()


def _identity(device_type: int) -> PciIdentity:
    device_id = VIRTIO_DEVICE_ID_BASE + device_type
    return PciIdentity(
        vendor_id=VIRTIO_VENDOR_ID,
        device_id=device_id,
        class_code=_CLASS_CODES.get(device_type, _OTHER_CLASS),
        revision=VIRTIO_REVISION,
        subsystem_vendor_id=VIRTIO_VENDOR_ID,
        subsystem_id=device_id,
    )


class BarRegisters:
    """The BAR: one page for each structure; an access across two pages finds nothing."""

    def __init__(self, *regions: BusDevice) -> None:
        self._regions = regions

    def read(self, offset: int, size: int) -> int:
        page, at = divmod(offset, REGION_BYTES)
        if page >= len(self._regions) or at + size > REGION_BYTES:
            return all_ones(size)
        return self._regions[page].read(at, size)

    def write(self, offset: int, size: int, value: int) -> None:
        page, at = divmod(offset, REGION_BYTES)
        if page < len(self._regions) and at + size <= REGION_BYTES:
            self._regions[page].write(at, size, value)
