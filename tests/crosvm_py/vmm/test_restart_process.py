# SPDX-License-Identifier: BSD-3-Clause
"""A real warden and real devices that end with requests in their queues, or hang."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import ALWAYS, Care
from tests.crosvm_py.device_rig import DeviceRig, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from tests.crosvm_py.device_rig import RigQueue

SECTOR = 512
TIMEOUT_SECONDS = 1.0


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(request: pytest.FixtureRequest) -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=bool(request.param), care=Care(ALWAYS, TIMEOUT_SECONDS)) as rig:
        yield rig


def start_block(rig: DeviceRig, image: Path) -> tuple[DeviceProcess, RigQueue]:
    image.write_bytes(b"".join(bytes([number]) * SECTOR for number in range(64)))
    device = rig.block(image)
    (queue,) = rig.activate(device)
    device.events = Transport([queue])
    return device, queue


def read(sector: int) -> list[bytes]:
    return [struct.pack("<IIQ", 0, 0, sector)]


def test_requests_of_a_killed_process_are_answered_once_and_in_order(
    rig: DeviceRig, tmp_path: Path
) -> None:
    device, queue = start_block(rig, tmp_path / "disk.img")
    assert queue.request(read(1), [SECTOR, 1])[0] == SECTOR + 1
    for turn in range(3):
        os.kill(device.pid, signal.SIGSTOP)
        for number in range(5):
            queue.submit(read(8 * turn + number), [SECTOR, 1])
        os.kill(device.pid, signal.SIGKILL)
        answers: list[bytes] = []
        while len(answers) < 5:
            seen = queue.calls
            answers += [data for _, _, data in queue.ring.collect()]
            if len(answers) < 5:
                rig.until(lambda seen=seen: queue.calls > seen)  # type: ignore[misc]
        expected = [bytes([8 * turn + number]) * SECTOR + b"\0" for number in range(5)]
        assert answers == expected
        rig.until(lambda: device.status.ready)
    assert device.status.restarts == 3
    assert rig.deaths == []


def test_device_that_hangs_delays_no_other_and_is_replaced(rig: DeviceRig, tmp_path: Path) -> None:
    device, queue = start_block(rig, tmp_path / "disk.img")
    (entropy,) = rig.activate(rig.rng())
    pid = device.pid
    os.kill(pid, signal.SIGSTOP)
    queue.submit(read(3), [SECTOR, 1])
    for _ in range(10):
        assert entropy.request([], [8])[0] == 8
    assert (device.pid, device.status.restarts) == (pid, 0)
    assert queue.answer() == (SECTOR + 1, bytes([3]) * SECTOR + b"\0")
    assert device.status.restarts == 1
    assert any(f"block:0 (pid {pid}): ended by the vmm: " in line for line in rig.lines)


def test_restart_on_purpose_finishes_what_was_begun(rig: DeviceRig, tmp_path: Path) -> None:
    device, queue = start_block(rig, tmp_path / "disk.img")
    pid = device.pid
    answers: list[str] = []
    rig.supervisor.restart(device, answers.append)
    queue.submit(read(5), [SECTOR, 1])
    rig.until(lambda: bool(answers))
    assert answers == [""]
    assert queue.answer() == (SECTOR + 1, bytes([5]) * SECTOR + b"\0")
    assert device.pid != pid
