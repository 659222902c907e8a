# SPDX-License-Identifier: BSD-3-Clause
"""The routes of GSIs: first the pins of the in-kernel interrupt controllers, then MSI messages.

KVM takes the whole table at once and waits until every CPU has noticed the change. Therefore a new
table is set as late as possible: when an eventfd is attached to a GSI, or when the route of a GSI
with an eventfd changes.
"""

from __future__ import annotations

import threading

from kvm.vm import MsiRoute
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvm.vm import ChipRoute

# KVM_MAX_IRQ_ROUTES of the kernel. GSI numbers are below it, too.
MAX_ROUTES: Final = 4096


class RoutingVm(Protocol):
    """The part of ``kvm.vm.Vm`` that routing needs."""

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
    """The part of ``kvm.vm.Vm`` that an interrupt line needs."""

    def set_irq_line(self, gsi: int, *, asserted: bool) -> None:
        """Drive a pin (KVM_IRQ_LINE)."""
        ...


class ChipWiring(NamedTuple):
    """How GSIs below ``pins`` are wired to the pins of the in-kernel interrupt controllers."""

    pins: int
    routes: tuple[ChipRoute, ...]


class IrqRoutes:
    """The GSI table of one VM; the ``MsiVectorRoutes`` of its PCI functions. Thread-safe.

    KVM's table contains a message only once its GSI has been attached. So if KVM refuses a message,
    only the function that uses it is affected.
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
        """Return an unused GSI.

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
        """Detach ``gsi`` from every eventfd, and make it available to ``allocate`` again."""
        with self._lock:
            for eventfd in self._attached.pop(gsi, ()):
                self._vm.deassign_irqfd(gsi, eventfd)
            self._allocated.discard(gsi)
            self._messages.pop(gsi, None)
            # KVM keeps the route until the next table is set. Until then nothing raises the GSI.
            self._in_kvm.pop(gsi, None)

    def set_msi(self, gsi: int, address_lo: int, address_hi: int, data: int) -> None:
        """Route ``gsi`` to a message: at once if the GSI is attached, otherwise in ``attach``.

        Raises:
            HostError: KVM refuses the message; the route is unchanged.
        """
        route = MsiRoute(gsi, address_hi << 32 | address_lo, data)
        with self._lock:
            if gsi in self._attached:
                self._hand_over(route)
            self._messages[gsi] = route

    def attach(self, gsi: int, eventfd: int) -> None:
        """Deliver ``gsi`` whenever ``eventfd`` is signalled; at once if it is signalled now.

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
        """Undo ``attach``; later signals stay in the eventfd until they are read."""
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
        """Drive the line; no ioctl is made if the level is unchanged."""
        if asserted != self._asserted:
            self._asserted = asserted
            self._vm.set_irq_line(self._gsi, asserted=asserted)
