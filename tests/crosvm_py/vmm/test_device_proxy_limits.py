# SPDX-License-Identifier: BSD-3-Clause
"""How much a device process may send to the vmm, and how long it may take to answer."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from sys_util import child_log, log
from tests.crosvm_py.hostile_device import READY, HostileDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

Line = tuple[int, str, str]


def test_flood_of_messages_leaves_the_others_their_turn(
    device: HostileDevice, records: list[Line]
) -> None:
    sent = device.flood(child_log.LogLine(log.ERROR, "m", "x"))
    turns: list[int] = []
    device.loop.call_later(0, lambda: turns.append(len(records)))
    device.turn()
    assert sent > turns[0] == 64


def test_flood_of_lines_does_not_flood_the_log(
    device: HostileDevice, records: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.host, "_lines", log.LineLimit(20, 1000.0))
    sent = device.flood(child_log.LogLine(log.ERROR, "m", "x"))
    for _ in range(sent // 64 + 1):
        device.turn()
    assert len(records) == 20 < sent


def test_flood_of_failed_queues_does_not_flood_the_log(
    device: HostileDevice, records: list[Line]
) -> None:
    sent = device.flood(protocol.QueueFailed(0, "again"))
    for _ in range(sent // 64 + 1):
        device.turn()
    assert len(device.events.calls) == sent
    assert len(records) <= 10


def test_log_line_is_the_devices_whatever_it_says(
    device: HostileDevice, records: list[Line]
) -> None:
    device.send(child_log.LogLine(0xFFFF, "x\n", "rng: fine"))
    device.send(child_log.LogLine(0, "m", "\x1b[2J\r\nblock:1: gone"))
    device.turn()
    assert records == [(log.ERROR, "m", "block:0: \\x1b[2J\\r\\nblock:1: gone")]


@contextmanager
def device_with(timeout_seconds: float) -> Iterator[HostileDevice]:
    device = HostileDevice(timeout_seconds)
    device.send(READY)
    device.turn()
    yield device
    device.close()


def test_device_that_never_answers_is_ended() -> None:
    with device_with(-1.0) as device:
        device.host.write_config(0, b"x")
        device.turn()
        assert "no answer within" in device.verdict
        assert device.failures == 1


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_deadline_is_that_of_the_oldest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with device_with(10.0) as device:
        device.host.write_config(0, b"x")
        clock.now = 9.0
        device.host.write_config(0, b"x")
        device.send(protocol.Done(2))
        device.turn()
        assert not device.verdict
        clock.now = 11.0
        device.turn()
        assert "no answer within 10 s" in device.verdict


def test_answered_request_has_no_deadline_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with device_with(10.0) as device:
        device.host.write_config(0, b"x")
        device.turn()
        device.send(protocol.Done(1))
        clock.now = 11.0
        device.turn()
        device.host.write_config(0, b"x")
        device.turn()
        assert not device.verdict
        clock.now = 22.0
        device.turn()
        assert "no answer within 10 s" in device.verdict


def test_device_that_reads_nothing_is_ended_and_no_call_waits(device: HostileDevice) -> None:
    for _ in range(2000):
        device.host.reset_queue(0)
    device.turn()
    assert device.verdict == "the peer does not read its messages"
    assert device.failures == 1


def test_guest_that_floods_the_configuration_loses_writes_and_not_the_device(
    device: HostileDevice,
) -> None:
    for _ in range(2000):
        device.host.write_config(0, b"12345678")
    device.turn()
    assert (device.failures, device.host.is_open) == (0, True)
