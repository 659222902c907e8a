# SPDX-License-Identifier: BSD-3-Clause
"""The description that a device process sends of itself: one per request, and not trusted."""

from __future__ import annotations

import pytest

from crosvm_py.device_process import protocol
from devices.virtio.backend import DeviceWords, QueuePosition, RingPosition
from devices.virtio.commands import Obeyed
from tests.crosvm_py.hostile_device import READY, HostileDevice

QUEUE = QueuePosition(3, "port", RingPosition(1, 2, 3, 4, 5, True), False)


def ask(device: HostileDevice, within_seconds: float = 30.0) -> list[DeviceWords | None]:
    found: list[DeviceWords | None] = []
    assert device.host.link is not None
    device.host.link.describe(within_seconds, found.append)
    return found


def description(request_id: int) -> protocol.Description:
    return protocol.Description(request_id, ("paused",), -5, (QUEUE,))


def test_words_of_a_device_reach_who_asked_once(device: HostileDevice) -> None:
    first, second = ask(device), ask(device)
    assert device.take()[0] == protocol.Describe(1)
    device.send(description(2))
    device.turn()
    assert (first, second) == ([], [DeviceWords(("paused",), -5, (QUEUE,))])
    device.host.close()
    assert (first, len(second)) == ([None], 1)


def test_device_that_says_nothing_in_time_may_do_it_later(device: HostileDevice) -> None:
    found = ask(device, 0.0)
    while not found:
        device.turn()
    assert found == [None]
    device.send(description(1))
    device.turn()
    assert (found, device.host.is_open) == ([None], True)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(description(2), id="another-number"),
        pytest.param(protocol.Done(1), id="done"),
        pytest.param(protocol.Answer(1, Obeyed()), id="answer"),
    ],
)
def test_device_that_answers_something_else_is_ended(
    device: HostileDevice, message: protocol.Done | protocol.Answer | protocol.Description
) -> None:
    found = ask(device)
    device.send(message)
    device.turn()
    assert not device.host.is_open
    assert found == [None]


def test_second_description_ends_the_device(device: HostileDevice) -> None:
    found = ask(device)
    device.send(description(1), description(1))
    device.turn()
    assert "which was not asked" in device.verdict
    assert len(found) == 1


def test_device_that_is_not_ready_cannot_be_asked() -> None:
    device = HostileDevice()
    before = device.host.link
    device.send(READY)
    device.turn()
    assert (before, device.host.link is None) == (None, False)
    device.close()


def test_contact_tells_what_is_unanswered(device: HostileDevice) -> None:
    assert device.host.link is not None
    assert device.host.link.contact.unanswered == 0
    ask(device)
    contact = device.host.link.contact
    assert contact.unanswered == 1
    assert contact.oldest_seconds >= 0
    assert contact.silent_seconds >= 0
