# SPDX-License-Identifier: BSD-3-Clause
"""Events as the monitor writes them and the client reads them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.client import events
from crosvm_py.client.events import read_events
from crosvm_py.cloud_hypervisor.events import EventMonitor, open_monitor

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_event_is_written_as_cloud_hypervisor_does(tmp_path: Path) -> None:
    fd, clock = open_monitor(str(tmp_path / "events")), Clock()
    monitor = EventMonitor(fd, clock=clock)
    clock.now += 1.5
    monitor.tell("vm", "device-removed", {"id": "_disk0", "bdf": "0000:00:01.0"})
    monitor.tell("vm", "booted")
    os.close(fd)
    text = (tmp_path / "events").read_text()
    assert text.startswith('{\n  "timestamp": {\n    "secs": 1,\n    "nanos": 500000000\n  },\n')
    assert text.endswith('  "source": "vm",\n  "event": "booted",\n  "properties": null\n}\n\n')
    first, second = read_events(str(tmp_path / "events"), lambda: True)
    assert first == (1.5, "vm", "device-removed", {"id": "_disk0", "bdf": "0000:00:01.0"})
    assert second[1:] == ("vm", "booted", {})


def test_guest_causes_a_bounded_number_of_events(tmp_path: Path) -> None:
    fd, clock = open_monitor(str(tmp_path / "events")), Clock()
    monitor = EventMonitor(fd, clock=clock)
    for _ in range(10_000):
        monitor.tell_of_guest("virtio-device", "reset", {"id": "_disk0"})
    clock.now += 1
    monitor.tell_of_guest("virtio-device", "activated", {"id": "_disk0"})
    os.close(fd)
    found = list(read_events(str(tmp_path / "events"), lambda: True))
    assert len(found) == 65
    assert found[-1].event == "activated"


def test_reader_that_stops_delays_nobody(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    monitor = EventMonitor(writer)
    for _ in range(10_000):
        monitor.tell("vm", "paused")
    os.close(reader)
    monitor.tell("vm", "resumed")
    os.close(writer)
    assert not list(tmp_path.iterdir())


def test_damaged_event_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(b"[]\n\n{}\n\n" + b"[" * 100_000 + b"\n\nhalf")
    assert list(read_events(str(tmp_path / "events"), lambda: True)) == []


def test_endless_record_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PIECE_BYTES", 64)
    monkeypatch.setattr(events, "MAX_RECORD_BYTES", 256)
    record = b'{"timestamp":{"secs":1,"nanos":0},"source":"vm","event":"booted","properties":null}'
    (tmp_path / "events").write_bytes(b"x" * 1000 + b"\n\n" + record + b"\n\n")
    (event,) = events.read_events(str(tmp_path / "events"), lambda: True)
    assert (event.seconds, event.source, event.event) == (1.0, "vm", "booted")
