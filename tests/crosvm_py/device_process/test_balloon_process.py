# SPDX-License-Identifier: BSD-3-Clause
"""The balloon in a process of its own, in its jail and under its policy; the memory is real."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from crosvm_py.kinds.order import DeviceOrder, pack_spec
from devices.virtio.balloon.device import BalloonSpec
from devices.virtio.commands import BalloonState, Command, Refused, SetTarget, TellState
from sys_util.wire import Message
from tests.crosvm_py.device_rig import DeviceRig
from tests.crosvm_py.hostile_device import RecordedEvents, WatchedLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess

PAGE = 4096
POOL = 0x200000
POOL_PFN = POOL // PAGE
ACTUAL_OFFSET = 4


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(request: pytest.FixtureRequest) -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=bool(request.param)) as rig:
        rig.memory.write(POOL, b"\xab" * 0x100000)
        yield rig


def start(rig: DeviceRig) -> tuple[DeviceProcess, RecordedEvents]:
    spec = pack_spec(BalloonSpec(size_bytes=8 * PAGE))
    device = rig.start(DeviceOrder("balloon", "balloon", spec, (), 0))
    lock = WatchedLock()
    lock.__enter__()  # the rig has a lock that nobody watches
    device.events = events = RecordedEvents(lock)
    return device, events


def ask(rig: DeviceRig, device: DeviceProcess, command: Command) -> Message:
    answers: list[Message] = []
    device.command(command, answers.append)
    rig.until(lambda: bool(answers))
    return answers[0]


def test_inflated_pages_leave_the_host(rig: DeviceRig) -> None:
    device, _ = start(rig)
    (queue,) = rig.activate(device)
    before = os.fstat(rig.memory.fd).st_blocks
    queue.request([struct.pack("<128I", *range(POOL_PFN, POOL_PFN + 128))], [])
    assert before - os.fstat(rig.memory.fd).st_blocks >= 120 * PAGE // 512
    assert rig.memory.read(POOL, 128 * PAGE) == bytes(128 * PAGE)
    assert rig.memory.read(POOL + 128 * PAGE, PAGE) == b"\xab" * PAGE


def test_new_target_reaches_the_driver(rig: DeviceRig) -> None:
    device, events = start(rig)
    assert struct.unpack("<4I", device.config) == (8, 0, 0, 0)
    answer = ask(rig, device, SetTarget(5))
    assert isinstance(answer, BalloonState)
    assert answer.target_pages == 5
    rig.until(lambda: bool(events.calls))
    assert struct.unpack("<4I", device.config) == (5, 0, 0, 0)
    assert events.calls == [f"config_changed {device.config.hex()}"]


def test_refused_command_says_why(rig: DeviceRig) -> None:
    device, _ = start(rig)
    reason = "the guest's driver knows no free page hints"
    assert ask(rig, device, TellState(hint=True)) == Refused(reason)


def test_size_that_the_driver_writes_is_known_to_the_vmm(rig: DeviceRig) -> None:
    device, events = start(rig)
    device.write_config(ACTUAL_OFFSET, struct.pack("<I", 3))
    rig.until(lambda: bool(events.calls))
    assert struct.unpack("<4I", device.config) == (8, 3, 0, 0)
    assert events.calls == [f"config_written {device.config.hex()}"]
