# SPDX-License-Identifier: BSD-3-Clause
"""Commands of the user to a device: each has one result, whatever the device makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.vmm.link import GONE
from devices.virtio.commands import Obeyed, Refused, SetSize, Waiting
from tests.crosvm_py.hostile_device import HostileDevice

if TYPE_CHECKING:
    from sys_util.wire import Message

FULL = Refused("full")


def command(device: HostileDevice) -> list[Message]:
    """Ask for something and return where the answer will be."""
    answers: list[Message] = []
    device.host.command(SetSize(7), answers.append)
    return answers


def answer(request_id: int, found: Message = Obeyed()) -> protocol.Answer:  # noqa: B008 - a fact
    return protocol.Answer(request_id, found)


def test_command_crosses_with_its_arguments(device: HostileDevice) -> None:
    command(device)
    assert device.take()[0] == protocol.Order(1, SetSize(7))


@pytest.mark.parametrize("found", [Obeyed(), FULL])
def test_result_reaches_who_asked_once(device: HostileDevice, found: Message) -> None:
    first, second = command(device), command(device)
    device.send(answer(2, found))
    device.turn()
    assert (first, second) == ([], [found])
    device.host.close()
    assert len(second) == 1
    assert first == [Refused(GONE)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(protocol.Done(1), "request 1, which was not asked", id="done"),
        pytest.param(answer(2), "request 2, which was no command", id="pause"),
        pytest.param(answer(9), "request 9, which was no command", id="nothing"),
        pytest.param(answer(1, Waiting(1)), "Waiting instead of Obeyed", id="of another command"),
        pytest.param(answer(1, SetSize(7)), "message of unknown type 4", id="a command"),
    ],
)
def test_wrong_answer_ends_the_device(device: HostileDevice, message: Message, reason: str) -> None:
    results = command(device)
    device.host.pause(lambda: None)
    device.send(message)
    device.turn()
    assert reason in device.verdict
    assert results == [Refused(GONE)]


def test_second_result_ends_the_device(device: HostileDevice) -> None:
    results = command(device)
    device.send(answer(1), answer(1))
    device.turn()
    assert "which was no command" in device.verdict
    assert results == [Obeyed()]


def test_command_for_a_dead_device_fails_at_once(device: HostileDevice) -> None:
    device.host.close()
    assert command(device) == [Refused(GONE)]
