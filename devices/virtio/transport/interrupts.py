# SPDX-License-Identifier: BSD-3-Clause
"""How a device interrupts its driver: MSI-X vectors, or INTx with the ISR register.

(virtio 1.3 §4.1.4.5, §4.1.5.1.2, §4.1.5.3.) With MSI-X enabled the device process signals the
eventfds of the vectors. Without MSI-X it signals ``intx_fd``, which the vmm's event loop polls.

Only the queue bit of the ISR register belongs to INTx alone. The device MUST set the configuration
bit before it notifies of a change (§4.1.4.5.1), by MSI-X too; §4.1.5.1.2 and §4.1.5.4 make no
exception. A driver that has one vector for queues and configuration sees by this bit which of them
the interrupt is for. The bits drive INTx only while MSI-X is disabled.
"""

from __future__ import annotations

import os

from devices.bus import all_ones
from devices.pci.config_space import (
    PCI_COMMAND,
    PCI_COMMAND_INTX_DISABLE,
    PCI_STATUS,
    PCI_STATUS_INTERRUPT,
)
from sys_util.eventfd import create_eventfd, drain_eventfd
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.bus import IrqLine
    from devices.pci.config_space import ConfigSpace
    from devices.pci.msix import Msix

VIRTIO_MSI_NO_VECTOR: Final = 0xFFFF
ISR_QUEUE: Final = 1 << 0
ISR_CONFIG: Final = 1 << 1


class Interrupts:
    """The interrupts of one device. As a bus device it is the ISR register."""

    def __init__(self, space: ConfigSpace, msix: Msix, line: IrqLine) -> None:
        self.intx_fd = create_eventfd()
        self.config_vector = VIRTIO_MSI_NO_VECTOR
        self._space = space
        self._msix = msix
        self._line = line
        self._isr = 0
        self._asserted = False

    def checked_vector(self, vector: int) -> int:
        """Return ``vector`` if the device has it, else VIRTIO_MSI_NO_VECTOR (§4.1.5.1.2.1)."""
        return vector if vector < len(self._msix) else VIRTIO_MSI_NO_VECTOR

    def call_fd(self, vector: int) -> int:
        """Return the eventfd by which a device process interrupts for ``vector``.

        A queue without a vector gets ``intx_fd`` too; with MSI-X enabled its events are dropped.
        """
        if self._msix.enabled and vector < len(self._msix):
            return self._msix.eventfd(vector)
        return self.intx_fd

    def config_changed(self) -> None:
        """Tell the driver that configuration or status changed."""
        self._isr |= ISR_CONFIG
        if not self._msix.enabled:
            self.update_line()
        elif self.config_vector != VIRTIO_MSI_NO_VECTOR:
            self._msix.signal(self.config_vector)

    def take_intx_event(self) -> bool:
        """Clear ``intx_fd`` and return whether it was signalled."""
        return drain_eventfd(self.intx_fd)

    def queues_used(self, vectors: Iterable[int]) -> None:
        """Tell the driver of used buffers; ``vectors`` are those of the queues on ``intx_fd``.

        The driver may have enabled MSI-X after the device process was told to use ``intx_fd``.
        """
        if not self._msix.enabled:
            self._isr |= ISR_QUEUE
            self.update_line()
            return
        for vector in vectors:
            if vector != VIRTIO_MSI_NO_VECTOR:
                self._msix.signal(vector)

    def update_line(self) -> None:
        """Set the INTx line to what ISR, MSI-X and the command register ask for."""
        pending = self._isr != 0 and not self._msix.enabled
        self._space.set_bits(PCI_STATUS, PCI_STATUS_INTERRUPT, on=pending)
        disabled = self._space.get(PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE
        asserted = pending and not disabled
        if asserted != self._asserted:
            self._asserted = asserted
            self._line.set_level(asserted)

    @property
    def isr(self) -> int:
        """The ISR register, without the side effect of reading it."""
        return self._isr

    @property
    def intx_asserted(self) -> bool:
        """Whether the device drives its INTx line."""
        return self._asserted

    def reset(self) -> None:
        """Forget vectors and every interrupt that was not delivered."""
        self.config_vector = VIRTIO_MSI_NO_VECTOR
        self._isr = 0
        drain_eventfd(self.intx_fd)
        self._msix.clear_pending()
        self.update_line()

    def read(self, offset: int, size: int) -> int:
        """Return the ISR register, which reading clears."""
        if (offset, size) != (0, 1):
            return all_ones(size)
        isr, self._isr = self._isr, 0
        self.update_line()
        return isr

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore it: the register is read-only."""

    def close(self) -> None:
        """Lower the line and close ``intx_fd``."""
        self._isr = 0
        self.update_line()
        os.close(self.intx_fd)
        self.intx_fd = -1
