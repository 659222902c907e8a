# SPDX-License-Identifier: BSD-3-Clause
"""Real device processes that tell how their queues stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.backend import DeviceWords, QueuePosition, RingPosition
from tests.crosvm_py.device_rig import PATIENCE_SECONDS, DeviceRig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(request: pytest.FixtureRequest) -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=bool(request.param)) as rig:
        yield rig


def described(rig: DeviceRig, device: DeviceProcess) -> DeviceWords:
    found: list[DeviceWords | None] = []
    assert device.link is not None
    device.link.describe(PATIENCE_SECONDS, found.append)
    rig.until(lambda: bool(found))
    assert found[0] is not None
    return found[0]


def test_device_tells_how_its_queues_stand(rig: DeviceRig) -> None:
    device = rig.rng()
    assert described(rig, device) == DeviceWords((), None, ())
    (queue,) = rig.activate(device)
    queue.request([], [8])
    idle = RingPosition(1, 1, 1, 1, 1, True)
    (at,) = described(rig, device).queues
    assert at == QueuePosition(0, "device", idle, False)
    paused: list[bool] = []
    device.pause(lambda: paused.append(True))
    rig.until(lambda: bool(paused))
    queue.submit([], [8])
    words = described(rig, device)
    assert (words.held, words.queues[0].ring) == (("paused",), idle)
    device.resume(lambda: None)
    assert queue.answer()[0] == 8
