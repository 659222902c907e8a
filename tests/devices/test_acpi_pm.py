# SPDX-License-Identifier: BSD-3-Clause
"""PM1 registers: power button, power-off, write-one-to-clear and access sizes."""

from __future__ import annotations

import pytest

from devices.acpi_pm import PM1_LENGTH, AcpiPm

STS, EN, CNT = 0, 2, 4
PWRBTN = 0x100


class FakeIrq:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set_level(self, asserted: bool) -> None:
        self.levels.append(asserted)


class Calls:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def sci() -> FakeIrq:
    return FakeIrq()


@pytest.fixture
def power_off() -> Calls:
    return Calls()


@pytest.fixture
def pm(sci: FakeIrq, power_off: Calls) -> AcpiPm:
    return AcpiPm(sci, power_off)


def test_power_button_raises_sci_until_status_is_cleared(pm: AcpiPm, sci: FakeIrq) -> None:
    pm.write(EN, 2, PWRBTN)
    pm.press_power_button()
    assert pm.read(STS, 2) == PWRBTN
    assert sci.levels == [True]
    pm.write(STS, 2, PWRBTN)
    assert pm.read(STS, 2) == 0
    assert sci.levels == [True, False]


def test_power_button_before_the_driver_waits_for_enable(pm: AcpiPm, sci: FakeIrq) -> None:
    pm.press_power_button()
    assert sci.levels == []
    pm.write(EN, 2, PWRBTN)
    assert sci.levels == [True]


def test_status_write_of_zero_clears_nothing(pm: AcpiPm) -> None:
    pm.press_power_button()
    pm.write(STS, 2, 0)
    assert pm.read(STS, 2) == PWRBTN


def test_timer_and_sleep_button_cannot_be_enabled(pm: AcpiPm) -> None:
    pm.write(EN, 2, 0xFFFF)
    assert pm.read(EN, 2) == 0x0520


def test_sci_enable_cannot_be_cleared(pm: AcpiPm) -> None:
    pm.write(CNT, 2, 0)
    assert pm.read(CNT, 2) == 0x0001


def test_s5_powers_off_only_with_sleep_enable(pm: AcpiPm, power_off: Calls) -> None:
    pm.write(CNT, 2, 0x0001)
    assert power_off.count == 0
    pm.write(CNT, 2, 0x2001)
    assert power_off.count == 1
    assert pm.read(CNT, 2) == 0x0001


def test_other_sleep_states_wake_up_at_once(pm: AcpiPm, power_off: Calls) -> None:
    pm.write(CNT, 2, 0x2001 | 5 << 10)
    assert power_off.count == 0
    assert pm.read(STS, 2) == 0x8000
    assert pm.read(CNT, 2) == 0x1401


def test_sleep_type_and_enable_in_one_dword_act_together(pm: AcpiPm, power_off: Calls) -> None:
    pm.write(CNT, 2, 5 << 10)
    pm.write(CNT, 4, 0x2000)
    assert power_off.count == 1


def test_byte_accesses_reach_each_half(pm: AcpiPm, power_off: Calls) -> None:
    pm.write(EN + 1, 1, 0x01)
    assert pm.read(EN, 2) == PWRBTN
    assert pm.read(STS, 4) == PWRBTN << 16
    pm.write(CNT + 1, 1, 0x20)
    assert power_off.count == 1


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_hostile_accesses_never_raise(pm: AcpiPm, size: int) -> None:
    pm.press_power_button()
    for value in (0, 1, 0x2000, 0x3C00, 0xFFFF, (1 << 64) - 1):
        for offset in range(PM1_LENGTH):
            pm.write(offset, size, value & ((1 << (8 * size)) - 1))
            assert 0 <= pm.read(offset, size) < 1 << (8 * size)
