# SPDX-License-Identifier: BSD-3-Clause
"""How much a device process may say to the vmm, and how long it may take."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from sys_util import log
from tests.crosvm_py.hostile_device import READY, HostileDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

Line = tuple[int, str, str]


@pytest.fixture
def device() -> Iterator[HostileDevice]:
    device = HostileDevice()
    yield device
    device.close()


@pytest.fixture
def ready(device: HostileDevice) -> HostileDevice:
    device.send(READY)
    device.turn()
    return device


def test_flood_of_messages_leaves_the_others_their_turn(
    ready: HostileDevice, records: list[Line]
) -> None:
    sent = ready.flood(protocol.LogLine(log.ERROR, "m", "x"))
    turns: list[int] = []
    ready.loop.call_later(0, lambda: turns.append(len(records)))
    ready.turn()
    assert sent > turns[0] == 64


def test_flood_of_lines_does_not_flood_the_log(
    ready: HostileDevice, records: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready.host, "_lines", log.LineLimit(20, 1000.0))
    sent = ready.flood(protocol.LogLine(log.ERROR, "m", "x"))
    for _ in range(sent // 64 + 1):
        ready.turn()
    assert len(records) == 20 < sent


def test_flood_of_failed_queues_does_not_flood_the_log(
    ready: HostileDevice, records: list[Line]
) -> None:
    sent = ready.flood(protocol.QueueFailed(0, "again"))
    for _ in range(sent // 64 + 1):
        ready.turn()
    assert len(ready.events.calls) == sent
    assert len(records) <= 10


def test_log_line_is_the_devices_whatever_it_says(
    ready: HostileDevice, records: list[Line]
) -> None:
    ready.send(protocol.LogLine(0xFFFF, "x\n", "rng: fine"))
    ready.send(protocol.LogLine(0, "m", "\x1b[2J\r\nblock:1: gone"))
    ready.turn()
    assert records == [(log.ERROR, "m", "block:0: \\x1b[2J\\r\\nblock:1: gone")]


@contextmanager
def device_with(timeout_seconds: float) -> Iterator[HostileDevice]:
    device = HostileDevice(timeout_seconds)
    device.send(READY)
    device.turn()
    yield device
    device.close()


def test_device_that_never_answers_is_ended() -> None:
    with device_with(-1.0) as ready:
        ready.host.write_config(0, b"x")
        ready.turn()
        assert "no answer within" in ready.verdict
        assert ready.failures == 1


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_deadline_is_that_of_the_oldest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with device_with(10.0) as ready:
        ready.host.write_config(0, b"x")
        clock.now = 9.0
        ready.host.write_config(0, b"x")
        ready.send(protocol.Done(2))
        ready.turn()
        assert not ready.verdict
        clock.now = 11.0
        ready.turn()
        assert "no answer within 10 s" in ready.verdict


def test_answered_request_has_no_deadline_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with device_with(10.0) as ready:
        ready.host.write_config(0, b"x")
        ready.turn()
        ready.send(protocol.Done(1))
        clock.now = 11.0
        ready.turn()
        ready.host.write_config(0, b"x")
        ready.turn()
        assert not ready.verdict
        clock.now = 22.0
        ready.turn()
        assert "no answer within 10 s" in ready.verdict


def test_device_that_reads_nothing_is_ended_and_no_call_waits(ready: HostileDevice) -> None:
    for _ in range(2000):
        ready.host.reset_queue(0)
    ready.turn()
    assert ready.verdict == "the peer does not read its messages"
    assert ready.failures == 1


def test_guest_that_floods_the_configuration_loses_writes_and_not_the_device(
    ready: HostileDevice,
) -> None:
    for _ in range(2000):
        ready.host.write_config(0, b"12345678")
    ready.turn()
    assert (ready.failures, ready.host.is_open) == (0, True)
