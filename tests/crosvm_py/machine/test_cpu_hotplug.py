# SPDX-License-Identifier: BSD-3-Clause
"""vCPUs that come at once and go when the guest lets them, and the threads that follow."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.machine.cpu_hotplug import CpuHotPlug
from devices.cpu_hotplug import CPU_EJECT, CPU_INSERTING
from devices.ged import GED_CPU
from sys_util.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.vcpu import VcpuSet
    from devices.ged import EventDevice

MOST = 4


class Rig:
    """Two vCPUs of four; the loop's turn comes when the test says so."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.moves: list[tuple[str, int]] = []
        self.later: list[Callable[[], None]] = []
        self.hotplug = CpuHotPlug(
            threading.RLock(), cast("EventDevice", self), self.later.append, 2, MOST
        )
        self.hotplug.attach(cast("VcpuSet", self))

    def tell(self, event: int) -> None:
        self.told.append(event)

    def bring(self, *indices: int) -> None:
        self.moves += [("bring", index) for index in indices]

    def take_away(self, index: int) -> None:
        self.moves.append(("take", index))

    def eject(self, *cpus: int) -> None:
        for cpu in cpus:
            self.hotplug.controller.write(0, 4, cpu)
            self.hotplug.controller.write(4, 1, CPU_EJECT)

    def turn(self) -> None:
        while self.later:
            self.later.pop(0)()

    @property
    def facts(self) -> tuple[int, list[int]]:
        return self.hotplug.count, sorted(self.hotplug.present)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_guest_grows_at_once(rig: Rig) -> None:
    rig.hotplug.resize(4)
    assert rig.facts == (4, [0, 1, 2, 3])
    assert rig.moves == [("bring", 2), ("bring", 3)]
    assert rig.told == [GED_CPU]


def test_same_number_is_no_news(rig: Rig) -> None:
    rig.hotplug.resize(2)
    assert (rig.told, rig.moves) == ([], [])


def test_guest_shrinks_when_it_has_let_go(rig: Rig) -> None:
    rig.hotplug.resize(4)
    rig.hotplug.resize(1)
    assert rig.facts == (1, [0, 1, 2, 3])
    rig.eject(2, 3)
    assert rig.facts == (1, [0, 1])
    rig.moves.clear()
    rig.turn()
    assert rig.moves == [("take", 2), ("take", 3)]


def test_shrink_beside_another_has_to_wait(rig: Rig) -> None:
    rig.hotplug.resize(4)
    rig.hotplug.resize(3)
    assert [rig.hotplug.is_busy_for(count) for count in (1, 2, 3, 4)] == [True, True, False, False]
    rig.hotplug.resize(2)
    assert rig.facts == (3, [0, 1, 2, 3])
    rig.eject(3)
    assert not any(map(rig.hotplug.is_busy_for, (1, 2, 3, 4)))


def test_growth_recalls_what_was_to_go(rig: Rig) -> None:
    rig.hotplug.resize(1)
    rig.hotplug.resize(3)
    assert rig.facts == (3, [0, 1, 2])
    assert rig.moves == [("bring", 2)]
    rig.told.clear()
    rig.eject(1)  # it was about to
    rig.turn()
    assert rig.facts == (3, [0, 1, 2])
    assert rig.told == [GED_CPU]
    assert rig.hotplug.controller.read(4, 1) & CPU_INSERTING
    assert rig.moves == [("bring", 2)]


def test_vcpu_that_goes_and_comes_in_one_turn_stays(rig: Rig) -> None:
    rig.hotplug.resize(1)
    rig.eject(1)
    rig.hotplug.resize(2)
    rig.turn()
    assert rig.moves == [("bring", 1)]


def test_hole_is_filled_first(rig: Rig) -> None:
    rig.hotplug.resize(4)
    rig.hotplug.resize(2)
    rig.eject(2)
    rig.hotplug.resize(3)  # vCPU 3 stays
    assert rig.facts == (3, [0, 1, 3])
    rig.hotplug.resize(4)
    assert rig.facts == (4, [0, 1, 2, 3])
    rig.hotplug.resize(1)
    rig.eject(1, 2, 3)
    assert rig.facts == (1, [0])


def test_reset_carries_out_what_the_guest_was_asked_for(rig: Rig) -> None:
    rig.hotplug.resize(4)
    rig.hotplug.resize(3)
    rig.moves.clear()
    rig.hotplug.reset()
    rig.turn()
    assert rig.facts == (3, [0, 1, 2])
    assert set(rig.moves) == {("take", 3)}
    assert not rig.hotplug.is_busy_for(1)


@pytest.mark.parametrize("count", [0, MOST + 1, 1 << 31])
def test_impossible_number_is_refused(rig: Rig, count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} vCPUs are not 1 to 4"):
        rig.hotplug.resize(count)
    assert rig.facts == (2, [0, 1])
