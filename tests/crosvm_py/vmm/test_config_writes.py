# SPDX-License-Identifier: BSD-3-Clause
"""Writes to a configuration that come faster than the process reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process.protocol import MAX_CONFIG_WRITES, ConfigWrite
from crosvm_py.vmm import config_writes
from crosvm_py.vmm.config_writes import MAX_UNANSWERED, ConfigWrites

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUT = 8
ACTUAL, POISON = 4, 12


class Process:
    """A process that carries out writes when the test tells it to."""

    def __init__(self) -> None:
        self.serves = True
        self.unanswered: list[Callable[[], None]] = []
        self.batches: list[tuple[ConfigWrite, ...]] = []
        self.writes = ConfigWrites(self._send, lambda: self.serves, OUTPUT)

    def _send(self, batch: tuple[ConfigWrite, ...], then: Callable[[], None]) -> None:
        assert self.serves
        assert 0 < len(batch) <= MAX_CONFIG_WRITES
        self.batches.append(batch)
        self.unanswered.append(then)

    def answer(self) -> None:
        self.unanswered.pop(0)()

    def answer_all(self) -> None:
        while self.unanswered:
            self.answer()

    def replace(self) -> None:
        """Act as the next process."""
        self.unanswered.clear()
        self.batches.clear()
        self.serves = True
        self.writes.repeat()

    def got(self, offset: int) -> list[bytes]:
        """Return what was written there, in order."""
        return [write.data for batch in self.batches for write in batch if write.offset == offset]


@pytest.fixture
def process() -> Process:
    return Process()


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def test_few_writes_are_passed_on_at_once_each_by_itself(process: Process) -> None:
    for value in range(MAX_UNANSWERED):
        assert process.writes.add(ACTUAL, number(value))
    assert process.got(ACTUAL) == [number(value) for value in range(MAX_UNANSWERED)]
    assert len(process.writes) == MAX_UNANSWERED
    process.answer_all()
    assert len(process.writes) == 0


def test_last_value_of_each_field_arrives_however_many_there_were(process: Process) -> None:
    for value in range(500):
        process.writes.add(ACTUAL, number(value))
        process.writes.add(POISON, number(1000 + value))
    process.answer_all()
    assert len(process.batches) <= MAX_UNANSWERED + 1
    assert process.got(ACTUAL)[-1] == number(499)
    assert process.got(POISON)[-1] == number(1499)
    assert len(process.writes) == 0


def test_parts_of_one_field_come_in_the_order_of_the_last_of_each(process: Process) -> None:
    for value in range(MAX_UNANSWERED):
        process.writes.add(0, number(value))
    process.writes.add(ACTUAL, b"\1")
    process.writes.add(ACTUAL, number(7))
    process.writes.add(ACTUAL, b"\2")
    process.answer_all()
    assert process.got(ACTUAL) == [number(7), b"\2"]


def test_output_is_kept_in_order_and_goes_in_large_messages(process: Process) -> None:
    text = bytes(at % 251 for at in range(20_000))
    for at in range(len(text)):
        assert process.writes.add(OUTPUT, text[at : at + 1])
    process.answer_all()
    assert b"".join(process.got(OUTPUT)) == text
    assert len(process.batches) < MAX_UNANSWERED + len(text) / MAX_CONFIG_WRITES + 2


def test_output_beyond_the_bound_is_refused_and_what_waits_is_not_lost(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_writes, "MAX_OUTPUT", 10)
    taken = [process.writes.add(OUTPUT, b"x") for _ in range(MAX_UNANSWERED + 15)]
    assert taken == [True] * (MAX_UNANSWERED + 10) + [False] * 5
    process.answer_all()
    assert len(process.got(OUTPUT)) == MAX_UNANSWERED + 10


def test_request_comes_after_the_fields_that_wait(process: Process) -> None:
    for value in range(100):
        process.writes.add(ACTUAL, number(value))
        process.writes.add(OUTPUT, b"x")
    assert process.got(ACTUAL)[-1] != number(99)
    process.writes.send_fields()
    assert process.got(ACTUAL)[-1] == number(99)
    assert len(process.got(OUTPUT)) < 100


def test_next_process_gets_what_the_last_one_did_not_answer(process: Process) -> None:
    for value in range(3):
        process.writes.add(ACTUAL, number(value))
        process.writes.add(OUTPUT, b"abc"[value : value + 1])
    process.answer()
    process.answer()
    process.serves = False
    process.writes.add(OUTPUT, b"d")
    process.writes.add(ACTUAL, number(9))
    process.replace()
    assert process.got(ACTUAL) == [number(9)]
    assert process.got(OUTPUT) == [b"b", b"c", b"d"]
    process.answer_all()
    assert len(process.writes) == 0


def test_without_a_process_writes_wait_in_bounded_memory(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_writes, "MAX_OUTPUT", 10)
    process.serves = False
    for value in range(1000):
        process.writes.add(ACTUAL, number(value))
        process.writes.add(OUTPUT, b"x")
        process.writes.send_fields()
    assert len(process.writes) == 1 + 10
    process.replace()
    assert process.got(ACTUAL) == [number(999)]


def test_driver_that_is_forgotten_keeps_its_output_alone(process: Process) -> None:
    process.writes.add(ACTUAL, number(1))
    process.writes.add(OUTPUT, b"a")
    process.serves = False
    process.writes.add(ACTUAL, number(2))
    process.writes.forget_driver()
    process.writes.add(POISON, number(3))
    process.replace()
    assert process.got(ACTUAL) == []
    assert process.got(OUTPUT) == [b"a"]
    assert process.got(POISON) == [number(3)]


def test_configuration_is_what_the_driver_wrote_until_the_process_says_so() -> None:
    process = Process()
    writes = ConfigWrites(process._send, lambda: process.serves, OUTPUT, [(ACTUAL, 4)])
    config = bytes(16)
    for value in range(1, MAX_UNANSWERED + 10):
        writes.add(ACTUAL, number(value))
        assert writes.over(config) == bytes(4) + number(value) + bytes(8)
    writes.add(0, number(1))  # not the driver's
    writes.add(POISON, number(1))
    writes.add(ACTUAL, b"\1")
    writes.add(OUTPUT, number(1))
    last = bytes(4) + number(MAX_UNANSWERED + 9) + bytes(8)
    assert writes.over(config) == last
    process.answer()
    assert writes.over(bytes(4) + number(1) + bytes(8)) == last
    process.answer_all()
    assert writes.over(config) == config


def test_configuration_is_the_processs_own_after_a_reset() -> None:
    process = Process()
    writes = ConfigWrites(process._send, lambda: process.serves, OUTPUT, [(ACTUAL, 4)])
    writes.add(ACTUAL, number(7))
    writes.forget_driver()
    assert writes.over(bytes(16)) == bytes(16)
