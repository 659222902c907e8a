# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X with real eventfds: masks, pending bits, routes, hostile table writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.pci.config_space import ConfigSpace, PciIdentity
from devices.pci.msix import MSIX_ENABLE, MSIX_FUNCTION_MASK, Msix
from tests.devices.fakes import FakeRoutes

VECTORS = 3
MESSAGE = (0xFEE0_1000, 0, 0x4041)


class Function:
    """A function with MSI-X, driven as a guest would."""

    def __init__(self) -> None:
        self.routes = FakeRoutes()
        self.space = ConfigSpace(PciIdentity(1, 2, 3))
        self.msix = Msix(VECTORS, self.routes)
        self.msix.add_capability(self.space, 0, 0x4000, 0x5000)
        self.space.on_write(self.msix.control_register, 2, self.update)
        self.bus_master = True

    def update(self) -> None:
        self.msix.update(bus_master=self.bus_master)

    def control(self, value: int) -> None:
        self.space.write(self.msix.control_register, 2, value)

    def program(self, vector: int, *, masked: bool = False) -> None:
        for at, value in enumerate((*MESSAGE[:2], MESSAGE[2] + vector, int(masked))):
            self.msix.table.write(16 * vector + 4 * at, 4, value)

    def mask(self, vector: int, *, masked: bool) -> None:
        self.msix.table.write(16 * vector + 12, 4, int(masked))


@pytest.fixture
def function() -> Iterator[Function]:
    function = Function()
    yield function
    function.msix.close()
    assert function.routes.attached == {}
    assert function.routes.allocated == set()


def test_capability_says_size_and_places(function: Function) -> None:
    at = function.space.read(0x34, 1)
    assert function.space.read(at, 1) == 0x11
    assert function.space.read(at + 2, 2) == VECTORS - 1
    assert function.space.read(at + 4, 4) == 0x4000
    assert function.space.read(at + 8, 4) == 0x5000
    function.control(0xFFFF)
    assert function.space.read(at + 2, 2) == 0xC000 | VECTORS - 1


def test_enabled_vector_is_attached_and_delivers(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(1)
    function.msix.signal(1)
    assert function.routes.deliver() == [(0xFEE0_1000, 0, 0x4042)]
    assert function.msix.pending() == 0


def test_vectors_start_masked(function: Function) -> None:
    assert [function.msix.table.read(16 * v + 12, 4) for v in range(VECTORS)] == [1, 1, 1]
    function.control(MSIX_ENABLE)
    assert function.routes.attached == {}
    assert function.routes.route_updates == 0


def test_driver_that_programs_masked_vectors_updates_each_route_once(function: Function) -> None:
    function.control(MSIX_ENABLE | MSIX_FUNCTION_MASK)
    for vector in range(VECTORS):
        function.program(vector, masked=True)
    function.control(MSIX_ENABLE)
    for vector in range(VECTORS):
        function.mask(vector, masked=False)
    assert function.routes.route_updates == VECTORS
    assert len(function.routes.attached) == VECTORS


def test_masked_vector_keeps_its_route_and_remembers(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(0)
    function.mask(0, masked=True)
    function.msix.signal(0)
    function.msix.signal(0)
    assert function.routes.deliver() == []
    assert function.msix.pba.read(0, 8) == 1
    assert function.msix.pba.read(0, 4) == 1
    function.mask(0, masked=False)
    assert function.routes.deliver() == [MESSAGE]
    assert function.routes.deliver() == []
    assert function.routes.route_updates == 1
    assert function.msix.pba.read(0, 8) == 0


def test_function_mask_holds_every_vector(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(0)
    function.program(2)
    function.control(MSIX_ENABLE | MSIX_FUNCTION_MASK)
    function.msix.signal(0)
    function.msix.signal(2)
    assert function.routes.attached == {}
    assert function.msix.pba.read(0, 8) == 0b101
    function.control(MSIX_ENABLE)
    assert len(function.routes.deliver()) == 2


def test_bus_master_off_holds_messages(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(0)
    function.bus_master = False
    function.update()
    function.msix.signal(0)
    assert function.routes.attached == {}
    function.bus_master = True
    function.update()
    assert function.routes.deliver() == [MESSAGE]


def test_message_changed_while_unmasked_is_routed_at_once(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(0)
    function.msix.table.write(8, 4, 0x55)
    function.msix.signal(0)
    assert function.routes.deliver() == [(0xFEE0_1000, 0, 0x55)]


def test_message_changed_while_masked_is_routed_at_unmask(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(0)
    function.mask(0, masked=True)
    function.msix.table.write(0, 8, 0xFEE0_2000)
    function.msix.signal(0)
    function.mask(0, masked=False)
    assert function.routes.deliver() == [(0xFEE0_2000, 0, 0x4041)]


def test_refused_message_detaches_until_it_is_corrected(function: Function) -> None:
    function.routes.refused_address_hi = 1
    function.control(MSIX_ENABLE)
    function.program(0)
    function.msix.table.write(4, 4, 1)
    assert function.routes.attached == {}
    function.msix.signal(0)
    assert function.msix.pending() == 1
    function.msix.table.write(4, 4, 0)
    assert function.routes.deliver() == [MESSAGE]


def test_disable_detaches_everything(function: Function) -> None:
    function.control(MSIX_ENABLE)
    function.program(0)
    function.control(0)
    assert function.routes.attached == {}
    assert not function.msix.enabled


def test_clear_pending_forgets(function: Function) -> None:
    function.msix.signal(1)
    assert function.msix.pending() == 0b10
    function.msix.clear_pending()
    assert function.msix.pending() == 0


def test_full_eventfd_does_not_stop_a_signal(function: Function) -> None:
    import os

    os.eventfd_write(function.msix.eventfd(0), 2**64 - 2)
    function.msix.signal(0)
    assert function.msix.pending() == 1


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("value", [0, -1])
def test_table_any_access_never_raises(function: Function, size: int, value: int) -> None:
    ones = (1 << 8 * size) - 1
    function.control(MSIX_ENABLE)
    for offset in range(4097 - size):
        function.msix.table.write(offset, size, value & ones)
        function.msix.pba.write(offset, size, value & ones)
        read = function.msix.table.read(offset, size)
        if size < 4 or offset % size or offset >= 16 * VECTORS:
            assert read == ones
        assert 0 <= function.msix.pba.read(offset, size) <= ones


def test_table_eight_byte_access_covers_two_registers(function: Function) -> None:
    function.msix.table.write(16, 8, 0x1122_3344_5566_7788)
    function.msix.table.write(24, 8, 0xFFFF_FFFE_0000_0041)
    assert function.msix.table.read(16, 8) == 0x1122_3344_5566_7788
    assert function.msix.table.read(24, 8) == 0x41
    assert function.msix.table.read(28, 4) == 0
