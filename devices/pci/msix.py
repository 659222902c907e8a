# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X: the vector table, the pending bits and the way to KVM (PCI 3.0 §6.8.2).

Each vector has an eventfd, which the device signals to interrupt the guest. While the vector may be
delivered, the eventfd is attached to a KVM route and interrupts never come through this process. A
masked vector keeps its route, but its eventfd is detached. A signal then stays in the eventfd,
which serves as the pending bit, and KVM delivers it when the eventfd is attached again.
"""

from __future__ import annotations

import os
import select

from devices.bus import all_ones
from devices.pci.config_space import PCI_CAP_ID_MSIX
from sys_util.errors import HostError
from sys_util.eventfd import create_eventfd, drain_eventfd, signal_eventfd
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from devices.pci.config_space import ConfigSpace

ENTRY_BYTES: Final = 16
MAX_VECTORS: Final = 2048

MSIX_ENABLE: Final = 1 << 15
MSIX_FUNCTION_MASK: Final = 1 << 14

_VECTOR_MASKED: Final = 1
_CONTROL_INDEX: Final = 3  # address low, address high, data, vector control

_log = get_logger("devices.pci.msix").limited()


class MsiVectorRoutes(Protocol):
    """The interrupt routes of the VM.

    Every method raises ``HostError`` where KVM refuses, which a guest can bring about with an
    impossible address.
    """

    def allocate(self) -> int:
        """Return a GSI that nobody else uses."""
        ...

    def free(self, gsi: int) -> None:
        """Give ``gsi`` back."""
        ...

    def set_msi(self, gsi: int, address_lo: int, address_hi: int, data: int) -> None:
        """Route ``gsi`` to a message."""
        ...

    def attach(self, gsi: int, eventfd: int) -> None:
        """Deliver ``gsi`` whenever ``eventfd`` is signalled, at once if it was (KVM_IRQFD)."""
        ...

    def detach(self, gsi: int, eventfd: int) -> None:
        """Undo ``attach``; later signals stay in the eventfd."""
        ...


class VectorState(NamedTuple):
    """One vector: its registers, whether KVM delivers it now, whether it was signalled."""

    masked: bool
    attached: bool
    signalled: bool
    address: int
    data: int


class _Vector:
    __slots__ = ("attached", "eventfd", "gsi", "registers", "routed")

    def __init__(self) -> None:
        self.registers = [0, 0, 0, _VECTOR_MASKED]
        self.eventfd = create_eventfd()
        self.gsi = -1
        self.routed = False  # the route of ``gsi`` is what the registers say
        self.attached = False


class Msix:
    """The vectors of one function. ``table`` and ``pba`` are the bus devices of its BAR."""

    def __init__(self, count: int, routes: MsiVectorRoutes) -> None:
        self.enabled = False
        self._function_mask = False
        self._bus_master = False
        self._routes = routes
        self._vectors = [_Vector() for _ in range(count)]
        self._poll = select.poll()
        self._by_fd = {vector.eventfd: index for index, vector in enumerate(self._vectors)}
        for eventfd in self._by_fd:
            self._poll.register(eventfd, select.POLLIN)
        self.table = MsixTable(self)
        self.pba = MsixPendingBits(self)
        self._space: ConfigSpace | None = None
        self._control_register = 0

    def __len__(self) -> int:
        return len(self._vectors)

    def add_capability(self, space: ConfigSpace, bar: int, table: int, pba: int) -> None:
        """Announce table and PBA at these offsets of ``bar``; ``update`` follows the register."""
        control = len(self._vectors) - 1
        body = control.to_bytes(2, "little")
        body += (table | bar).to_bytes(4, "little") + (pba | bar).to_bytes(4, "little")
        writable = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_bytes(2, "little")
        self._control_register = space.add_capability(PCI_CAP_ID_MSIX, body, writable) + 2
        self._space = space

    @property
    def control_register(self) -> int:
        """Where in configuration space Message Control is."""
        return self._control_register

    def update(self, *, bus_master: bool) -> None:
        """Follow the control register and bus mastering, without which no message leaves."""
        if self._space is not None:
            control = self._space.get(self._control_register, 2)
            self.enabled = bool(control & MSIX_ENABLE)
            self._function_mask = bool(control & MSIX_FUNCTION_MASK)
        self._bus_master = bus_master
        for index in range(len(self._vectors)):
            self._deliver(index)

    def eventfd(self, vector: int) -> int:
        """Return the eventfd of ``vector``, which this object still owns."""
        return self._vectors[vector].eventfd

    def signal(self, vector: int) -> None:
        """Interrupt the guest, now or when the vector is unmasked."""
        signal_eventfd(self._vectors[vector].eventfd)

    def clear_pending(self) -> None:
        """Forget interrupts that were not delivered yet."""
        for vector in self._vectors:
            if not vector.attached:
                drain_eventfd(vector.eventfd)

    def pending(self) -> int:
        """Return the pending bits, bit 0 for vector 0, without consuming them."""
        bits = 0
        for eventfd, _ in self._poll.poll(0):
            index = self._by_fd[eventfd]
            # An attached eventfd is readable for a moment, until KVM has consumed the signal.
            if not self._vectors[index].attached:
                bits |= 1 << index
        return bits

    @property
    def function_masked(self) -> bool:
        """Whether the driver masks all vectors together."""
        return self._function_mask

    def states(self) -> tuple[VectorState, ...]:
        """Return the state of each vector, without consuming any signal."""
        signalled = {self._by_fd[eventfd] for eventfd, _ in self._poll.poll(0)}
        return tuple(
            VectorState(
                masked=bool(vector.registers[_CONTROL_INDEX] & _VECTOR_MASKED),
                attached=vector.attached,
                signalled=index in signalled,
                address=vector.registers[1] << 32 | vector.registers[0],
                data=vector.registers[2],
            )
            for index, vector in enumerate(self._vectors)
        )

    def reset(self) -> None:
        """Return to the state in which the machine starts; the control register has done so.

        No vector is delivered then. Signals that are on their way stay in the eventfds.
        """
        self.update(bus_master=False)
        for vector in self._vectors:
            vector.registers = [0, 0, 0, _VECTOR_MASKED]
            vector.routed = False

    def close(self) -> None:
        """Detach and close every vector."""
        self.enabled = False
        for index, vector in enumerate(self._vectors):
            self._deliver(index)
            if vector.gsi >= 0:
                self._routes.free(vector.gsi)
            os.close(vector.eventfd)
        self._vectors.clear()
        self._by_fd.clear()
        self._poll = select.poll()

    def get_register(self, index: int) -> int:
        """Return dword ``index`` of the table."""
        return self._vectors[index // 4].registers[index % 4]

    def set_register(self, index: int, value: int) -> None:
        """Set dword ``index`` of the table."""
        vector, register = self._vectors[index // 4], index % 4
        if register == _CONTROL_INDEX:
            value &= _VECTOR_MASKED
        elif vector.registers[register] != value:
            vector.routed = False
        vector.registers[register] = value

    def registers_changed(self, vector: int) -> None:
        """Act on a write to the table, once for all the dwords of one access."""
        self._deliver(vector)

    def _deliver(self, index: int) -> None:
        """Make route and attachment of a vector what the registers ask for."""
        vector = self._vectors[index]
        masked = vector.registers[_CONTROL_INDEX] & _VECTOR_MASKED or self._function_mask
        wanted = self.enabled and self._bus_master and not masked
        try:
            if wanted:
                self._attach(vector)
            elif vector.attached:
                self._detach(vector)
        except HostError as error:
            _log.warning("vector %d: %s", index, error)

    def _attach(self, vector: _Vector) -> None:
        # A route is written only when the vector is about to use it: KVM rebuilds its whole table
        # for each, and drivers write three registers of a masked vector one by one.
        if not vector.routed:
            try:
                self._route(vector)
            except HostError:
                if vector.attached:  # the old message must not go out under the new registers
                    self._detach(vector)
                raise
        if not vector.attached:
            self._routes.attach(vector.gsi, vector.eventfd)
            vector.attached = True

    def _detach(self, vector: _Vector) -> None:
        vector.attached = False
        self._routes.detach(vector.gsi, vector.eventfd)

    def _route(self, vector: _Vector) -> None:
        if vector.gsi < 0:
            vector.gsi = self._routes.allocate()
        address_lo, address_hi, data, _ = vector.registers
        self._routes.set_msi(vector.gsi, address_lo, address_hi, data)
        vector.routed = True


class MsixTable:
    """The table: aligned accesses of 4 or 8 bytes, others are undefined (§6.8.2)."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        if not self._valid(offset, size):
            return all_ones(size)
        value = self._msix.get_register(offset // 4)
        if size == 8:
            value |= self._msix.get_register(offset // 4 + 1) << 32
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if not self._valid(offset, size):
            return
        self._msix.set_register(offset // 4, value & 0xFFFF_FFFF)
        if size == 8:
            self._msix.set_register(offset // 4 + 1, value >> 32)
        self._msix.registers_changed(offset // ENTRY_BYTES)

    def _valid(self, offset: int, size: int) -> bool:
        inside = offset + size <= ENTRY_BYTES * len(self._msix)
        return size in (4, 8) and offset % size == 0 and inside


class MsixPendingBits:
    """The pending bit array, read-only, in 64-bit units."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        if size not in (4, 8) or offset % size:
            return all_ones(size)
        return self._msix.pending() >> 8 * offset & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore it: only the device sets pending bits."""
