# SPDX-License-Identifier: BSD-3-Clause
"""Where each GSI leads: pins of the in-kernel interrupt controllers first, and messages after them.

KVM takes the whole table at once and waits until every CPU has noticed, so a new one is handed over
as late as possible: when an eventfd is attached to a GSI, or a GSI that has one changes.
"""

from __future__ import annotations

import threading

from kvm.vm import MsiRoute
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvm.vm import ChipRoute

# KVM_MAX_IRQ_ROUTES of the kernel, which also bounds the GSI numbers.
MAX_ROUTES: Final = 4096


class RoutingVm(Protocol):
    """What routing needs of ``kvm.vm.Vm``."""

    def set_gsi_routing(
        self, chip_routes: Sequence[ChipRoute], msi_routes: Sequence[MsiRoute]
    ) -> None:
        """Replace the table (KVM_SET_GSI_ROUTING)."""
        ...

    def assign_irqfd(self, gsi: int, eventfd: int) -> None:
        """Raise ``gsi`` when ``eventfd`` is signalled (KVM_IRQFD)."""
        ...

    def deassign_irqfd(self, gsi: int, eventfd: int) -> None:
        """Undo ``assign_irqfd``."""
        ...


class LineVm(Protocol):
    """What an interrupt line needs of ``kvm.vm.Vm``."""

    def set_irq_line(self, gsi: int, *, asserted: bool) -> None:
        """Drive a pin (KVM_IRQ_LINE)."""
        ...


class ChipWiring(NamedTuple):
    """How the in-kernel interrupt controllers are wired: GSIs from ``pins`` up lead to none."""

    pins: int
    routes: tuple[ChipRoute, ...]


class IrqRoutes:
    """The GSI table of one VM; the ``MsiVectorRoutes`` of its PCI functions. Thread-safe.

    KVM's table only ever holds messages of GSIs that were attached, so that a message KVM refuses
    hurts nobody but the function that asked for it.
    """

    def __init__(self, vm: RoutingVm, wiring: ChipWiring) -> None:
        self._vm = vm
        self._first_msi_gsi = wiring.pins
        self._lock = threading.Lock()
        self._chip_routes = wiring.routes
        self._allocated: set[int] = set()
        self._messages: dict[int, MsiRoute] = {}
        self._attached: dict[int, set[int]] = {}
        self._in_kvm: dict[int, MsiRoute] = {}

    def allocate(self) -> int:
        """Return a GSI that nobody else uses.

        Raises:
            HostError: KVM's table is full.
        """
        with self._lock:
            for gsi in range(self._first_msi_gsi, MAX_ROUTES - len(self._chip_routes)):
                if gsi not in self._allocated:
                    self._allocated.add(gsi)
                    return gsi
        raise HostError("route", "an interrupt", f"all {MAX_ROUTES} routes of KVM are in use")

    def free(self, gsi: int) -> None:
        """Give ``gsi`` back, detached from every eventfd; it may be allocated again."""
        with self._lock:
            for eventfd in self._attached.pop(gsi, ()):
                self._vm.deassign_irqfd(gsi, eventfd)
            self._allocated.discard(gsi)
            self._messages.pop(gsi, None)
            # KVM's own copy stays until the next table; nothing raises the GSI meanwhile.
            self._in_kvm.pop(gsi, None)

    def set_msi(self, gsi: int, address_lo: int, address_hi: int, data: int) -> None:
        """Route ``gsi`` to a message; at once if it is attached, else before it is.

        Raises:
            HostError: KVM refuses the message; the route is as it was.
        """
        route = MsiRoute(gsi, address_hi << 32 | address_lo, data)
        with self._lock:
            if gsi in self._attached:
                self._hand_over(route)
            self._messages[gsi] = route

    def attach(self, gsi: int, eventfd: int) -> None:
        """Deliver ``gsi`` whenever ``eventfd`` is signalled, at once if it is.

        Raises:
            HostError: KVM refuses the message or the eventfd.
        """
        with self._lock:
            route = self._messages.get(gsi)
            if route is not None:
                self._hand_over(route)
            self._vm.assign_irqfd(gsi, eventfd)
            self._attached.setdefault(gsi, set()).add(eventfd)

    def detach(self, gsi: int, eventfd: int) -> None:
        """Undo ``attach``; later signals stay in the eventfd."""
        with self._lock:
            eventfds = self._attached.get(gsi, set())
            if eventfd not in eventfds:
                return
            eventfds.discard(eventfd)
            if not eventfds:
                del self._attached[gsi]
            self._vm.deassign_irqfd(gsi, eventfd)

    def _hand_over(self, route: MsiRoute) -> None:
        if self._in_kvm.get(route.gsi) == route:
            return
        table = {**self._in_kvm, route.gsi: route}
        self._vm.set_gsi_routing(self._chip_routes, tuple(table.values()))
        self._in_kvm = table


class KvmIrqLine:
    """An interrupt line with one device on it, at a pin of the in-kernel controllers."""

    def __init__(self, vm: LineVm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi
        self._asserted = False

    def set_level(self, asserted: bool) -> None:
        """Drive the line; an unchanged level costs nothing."""
        if asserted != self._asserted:
            self._asserted = asserted
            self._vm.set_irq_line(self._gsi, asserted=asserted)
