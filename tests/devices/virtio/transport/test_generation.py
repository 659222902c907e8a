# SPDX-License-Identifier: BSD-3-Clause
"""The generation of the configuration: what a driver may believe (virtio 1.3 §2.5.1, §4.1.4.3.1).

The model is a driver that reads as the specification says: the generation, some fields, and the
generation again. If both are equal, all fields must be of one moment.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio.transport.device_config import DeviceConfig
from tests.devices.virtio.transport.pci_driver import CONFIG, GENERATION, Machine

# Around the wrap of the 8-bit register, where a count of changes comes back to where it was.
counts = st.one_of(st.integers(0, 3), st.integers(254, 258), st.integers(510, 514))


def changed(config: DeviceConfig, number: int) -> None:
    config.replace(number.to_bytes(8, "little"))


def new_config() -> DeviceConfig:
    return DeviceConfig(bytes(8), lambda _offset, _data: None)


@given(st.lists(counts, max_size=12))
def test_equal_generations_mean_that_nothing_changed(changes_between_reads: list[int]) -> None:
    config, number = new_config(), 0
    for changes in changes_between_reads:
        before, seen = config.read_generation(), config.read(0, 8)
        for _ in range(changes):
            number += 1
            changed(config, number)
        unchanged = config.read(0, 8) == seen
        assert (config.read_generation() == before) == unchanged


@given(st.lists(st.sampled_from(["change", "advance", "field", "generation"]), max_size=1200))
def test_fields_read_under_one_generation_are_of_one_moment(steps: list[str]) -> None:
    config, number = new_config(), 0
    generation, seen = config.read_generation(), set[int]()
    for step in steps:
        if step == "change":
            number += 1
            changed(config, number)
        elif step == "advance":
            config.advance()
        elif step == "field":
            seen.add(config.read(0, 8))
        else:
            before, generation = generation, config.read_generation()
            if generation == before:
                assert len(seen) <= 1
            seen = set()


@pytest.mark.parametrize("changes", [256, 512])
def test_wrapped_number_of_changes_is_seen(machine: Machine, changes: int) -> None:
    machine.start()
    before = machine.read(GENERATION, 1)
    for number in range(changes):
        machine.transport.config_changed(number.to_bytes(2, "little") + CONFIG[2:])
        machine.mmio.read(machine.region(4), 2)
    assert machine.read(GENERATION, 1) != before


def test_generation_is_the_same_as_long_as_nothing_changes(machine: Machine) -> None:
    machine.start()
    machine.transport.config_changed(CONFIG[::-1])
    seen = {machine.read(GENERATION, 1) for _ in range(3)}
    machine.transport.config_changed(CONFIG[::-1])
    assert {machine.read(GENERATION, 1)} == seen
