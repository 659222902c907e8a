# SPDX-License-Identifier: BSD-3-Clause
"""Rates between two looks, and the table of what a VM says, which may be a stranger."""

from __future__ import annotations

import json

import pytest

from crosvm_py.cli.watch.amounts import count, duration, size, word
from crosvm_py.cli.watch.look import Look, Vcpu
from crosvm_py.cli.watch.processes import Process
from crosvm_py.cli.watch.rates import NO_RATES, rates_between
from crosvm_py.cli.watch.report import fields, table, title
from crosvm_py.requests.devices import CounterInfo, DeviceInfo
from crosvm_py.requests.vm import VmFacts


def a_look(at: float = 0.0, done: int = 0, *, pid: int = 40, disk_pid: int = 42) -> Look:
    counters = ("requests", "bytes_to_guest", "bytes_from_guest", "restarts")
    amounts = (100 * done, 4096 * done, 0, 1)
    disk = DeviceInfo(
        *(0, "block:0", disk_pid, "active", "block_device", ()),
        tuple(CounterInfo(*pair) for pair in zip(counters, amounts, strict=True)),
    )
    processes = (
        Process(pid, 1, "work", 7, 1.0 + done, 10 << 20, 4 << 20),
        Process(42, pid, "anything", 8, 0.5 * done, 1 << 20, 0),
    )
    vcpus = (Vcpu(0, 41, 1000 * done, 0.25 * done),)
    return Look(
        "vm.sock", at, pid, 753.0, VmFacts("running", 1, 1 << 29), vcpus, (disk,), processes
    )


def test_table_has_a_row_for_each_process_and_vcpu() -> None:
    rates = rates_between(a_look(), a_look(2.0, 2))
    assert [line.split() for line in table(a_look(2.0, 2), rates)[1:]] == [
        ["vmm", "40", "100.0", "10.0M", "4.0M", "-", "-", "-", "-"],
        ["vcpu0", "41", "25.0", "-", "-", "-", "-", "-", "1.0K"],
        ["block:0", "42", "50.0", "1.0M", "0", "100", "4.0K", "0", "-", "active,", "1", "restarts"],
    ]


def test_title_names_state_and_sizes() -> None:
    expected = "work (vm.sock): running for 0:12:33, 1 vCPU, 512M of memory"
    assert title(a_look()) == expected


@pytest.mark.parametrize(
    "before", [None, a_look(2.0), a_look(pid=39)], ids=["first", "same time", "another VM"]
)
def test_rates_without_a_look_before_are_none(before: Look | None) -> None:
    assert rates_between(before, a_look(2.0)) == NO_RATES


def test_rates_of_counters_that_fall_are_zero() -> None:
    rates = rates_between(a_look(0.0, 5), a_look(1.0, 1))
    assert rates.devices["block:0"] == (0.0, 0.0, 0.0)
    assert rates.exits == {0: 0.0}


def test_device_that_claims_a_foreign_process_has_no_figures_of_it() -> None:
    last = table(a_look(disk_pid=1), NO_RATES)[-1].split()
    assert last[:5] == ["block:0", "-", "-", "-", "-"]


def test_texts_of_a_vm_cannot_control_a_terminal_and_stay_in_their_columns() -> None:
    bad = "\x1b[2J\u202e\n" * 20
    look = a_look()
    device = look.devices[0]._replace(name=bad, state="\x9b31m" * 3)
    process = look.processes[0]._replace(name="漢\x07" * 8)
    look = look._replace(devices=(device,), processes=(process, *look.processes[1:]), socket=bad)
    for line in (title(look), *table(look, NO_RATES)):
        assert line.isprintable()
        assert line.isascii()
        assert len(line) < 260


def test_fields_are_json_with_rates_only_if_there_are_any() -> None:
    plain = json.loads(json.dumps(fields(a_look())))
    assert "exits_per_second" not in plain["vcpus"][0]
    rated = fields(a_look(2.0, 2), rates_between(a_look(), a_look(2.0, 2)))
    found = json.loads(json.dumps(rated))
    assert found["vcpus"][0]["exits_per_second"] == 1000.0
    assert found["devices"][0]["per_second"]["requests"] == 100.0
    assert found["processes"][1]["cpu_share"] == 0.5


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (99_949, "99.9K"),
        (123_456, "123K"),
        (2**64, "18.4E"),
        (1e30, "1000000000000E"),
    ],
)
def test_count_has_one_unit(number: float, shown: str) -> None:
    assert count(number) == shown


def test_size_counts_in_1024() -> None:
    assert size(1536) == "1.5K"


def test_duration_has_days() -> None:
    assert duration(3 * 86400 + 4 * 3600 + 5 * 60 + 6) == "3d 4:05:06"


def test_word_is_cut() -> None:
    assert word("x" * 40, 8) == "x" * 8
    assert word("\x1b" * 8, 8) == "\\x1b\\x1" + "+"
