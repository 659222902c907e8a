# SPDX-License-Identifier: BSD-3-Clause
"""The registers of the CPU hot-plug controller, as AML uses them and as a hostile guest does."""

from __future__ import annotations

import random

import pytest

from devices.cpu_hotplug import (
    CPU_EJECT,
    CPU_ENABLED,
    CPU_HOTPLUG_BYTES,
    CPU_INSERTING,
    CPU_REMOVING,
    CpuHotplugController,
)

SELECT, STATUS = 0, 4


class Cpus:
    """Two CPUs of four that there can be, and those that the guest has ejected."""

    def __init__(self) -> None:
        self.ejected: list[int] = []
        self.registers = CpuHotplugController(2, 4, self.ejected.append)

    def status(self, cpu: int) -> int:
        self.registers.write(SELECT, 4, cpu)
        return self.registers.read(STATUS, 1)

    def tell(self, cpu: int, bits: int) -> None:
        self.registers.write(SELECT, 4, cpu)
        self.registers.write(STATUS, 1, bits)


@pytest.fixture
def cpus() -> Cpus:
    return Cpus()


def test_present_cpus_are_enabled(cpus: Cpus) -> None:
    assert [cpus.status(cpu) for cpu in range(6)] == [CPU_ENABLED, CPU_ENABLED, 0, 0, 0, 0]
    assert cpus.status(0xFFFF_FFFF) == 0


def test_cpu_that_comes_is_told_until_the_guest_has_looked(cpus: Cpus) -> None:
    cpus.registers.plug(2)
    assert cpus.status(2) == cpus.status(2) == CPU_ENABLED | CPU_INSERTING
    cpus.tell(2, CPU_INSERTING)
    assert cpus.status(2) == CPU_ENABLED


def test_cpu_that_is_to_go_is_there_until_it_is_ejected(cpus: Cpus) -> None:
    cpus.registers.ask_to_eject(1)
    assert cpus.status(1) == CPU_ENABLED | CPU_REMOVING
    cpus.tell(1, CPU_REMOVING)
    assert (cpus.status(1), cpus.ejected) == (CPU_ENABLED, [])
    cpus.tell(1, CPU_EJECT)
    assert (cpus.status(1), cpus.ejected) == (0, [1])


@pytest.mark.parametrize("cpu", [0, 1, 2, 3, 4, 0xFFFF_FFFF])
def test_cpu_that_nobody_asked_for_is_not_ejected(cpus: Cpus, cpu: int) -> None:
    before = cpus.status(cpu)
    cpus.tell(cpu, 0xFF)
    assert (cpus.status(cpu), cpus.ejected) == (before, [])


def test_recalled_cpu_that_is_ejected_all_the_same_comes_again(cpus: Cpus) -> None:
    cpus.registers.ask_to_eject(1)
    cpus.registers.recall()
    assert cpus.status(1) == CPU_ENABLED
    cpus.tell(1, CPU_EJECT)
    assert (cpus.status(1), cpus.ejected) == (CPU_ENABLED | CPU_INSERTING, [1])
    cpus.tell(1, CPU_INSERTING | CPU_EJECT)
    assert (cpus.status(1), cpus.ejected) == (CPU_ENABLED, [1])  # once


def test_reset_takes_away_what_was_to_go(cpus: Cpus) -> None:
    cpus.registers.plug(2)
    cpus.registers.plug(3)
    cpus.registers.ask_to_eject(3)
    cpus.registers.reset()
    assert cpus.ejected == [3]
    assert cpus.registers.read(SELECT, 4) == 0
    assert [cpus.status(cpu) for cpu in range(4)] == [CPU_ENABLED] * 3 + [0]


def test_accesses_of_other_sizes_and_places_do_nothing(cpus: Cpus) -> None:
    cpus.registers.ask_to_eject(1)
    cpus.registers.write(SELECT, 4, 1)
    for offset in range(CPU_HOTPLUG_BYTES):
        for size in (1, 2, 4, 8):
            if (offset, size) not in ((SELECT, 4), (STATUS, 1)):
                cpus.registers.write(offset, size, 0xFF)
                assert cpus.registers.read(offset, size) == (1 << 8 * size) - 1
    assert (cpus.status(1), cpus.ejected) == (CPU_ENABLED | CPU_REMOVING, [])


@pytest.mark.parametrize("seed", range(8))
def test_guest_that_writes_anything_ejects_only_what_it_was_asked_for(seed: int) -> None:
    chance = random.Random(seed)
    allowed: set[int] = set()

    def eject(cpu: int) -> None:
        assert cpu in allowed
        allowed.discard(cpu)

    registers = CpuHotplugController(2, 4, eject)
    for _ in range(3000):
        match chance.randrange(8):
            case 0 if registers.present - {0}:
                cpu = max(registers.present)
                registers.ask_to_eject(cpu)
                allowed.add(cpu)
            case 1 if len(registers.present) < 4 and not registers.asked:
                cpu = min(set(range(4)) - registers.present)
                registers.plug(cpu)
                allowed.discard(cpu)
            case 2:
                registers.recall()
            case _:
                place = chance.choice([(SELECT, 4), (STATUS, 1), (chance.randrange(12), 2)])
                registers.write(
                    *place, chance.choice([chance.randrange(6), chance.getrandbits(32)])
                )
                assert registers.read(*place) < 1 << 8 * place[1]
        assert 0 in registers.present
        assert registers.asked <= registers.present <= set(range(4))
