# SPDX-License-Identifier: BSD-3-Clause
"""Commands of the user to a device: each has one result, whatever the device makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest

from crosvm_py.device_process import protocol
from tests.crosvm_py.hostile_device import HostileDevice

if TYPE_CHECKING:
    from sys_util.wire import Message

Result = tuple[bool, dict[str, object]]


def command(device: HostileDevice) -> list[Result]:
    """Ask for something and return where the result will be."""
    results: list[Result] = []
    device.host.command("set", {"pages": 7}, lambda ok, fields: results.append((ok, fields)))
    return results


def answer(request_id: int, *, ok: bool = True, **fields: object) -> protocol.Answer:
    return protocol.Answer(request_id, ok, msgpack.packb(fields))


def test_command_crosses_with_its_arguments(device: HostileDevice) -> None:
    command(device)
    assert device.take()[0] == protocol.Command(1, "set", msgpack.packb({"pages": 7}))


@pytest.mark.parametrize("ok", [True, False])
def test_result_reaches_who_asked_once(device: HostileDevice, ok: bool) -> None:
    first, second = command(device), command(device)
    device.send(answer(2, ok=ok, error="full"))
    device.turn()
    assert (first, second) == ([], [(ok, {"error": "full"})])
    device.host.close()
    assert len(second) == 1
    assert [ok for ok, _ in first] == [False]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(protocol.Done(1), "request 1, which was not asked", id="done"),
        pytest.param(answer(2), "request 2, which was no command", id="pause"),
        pytest.param(answer(9), "request 9, which was no command", id="nothing"),
        pytest.param(protocol.Answer(1, True, b"\xc1"), "not msgpack", id="garbage"),
        pytest.param(protocol.Answer(1, True, b"\x90"), "without names", id="array"),
        pytest.param(protocol.Answer(1, False, b"\x80"), "without a reason", id="no reason"),
        pytest.param(answer(1, ok=False, error=[1]), "without a reason", id="reason is no text"),
    ],
)
def test_wrong_answer_ends_the_device(device: HostileDevice, message: Message, reason: str) -> None:
    results = command(device)
    device.host.pause(lambda: None)
    device.send(message)
    device.turn()
    assert reason in device.verdict
    assert [ok for ok, _ in results] == [False]


def test_second_result_ends_the_device(device: HostileDevice) -> None:
    results = command(device)
    device.send(answer(1), answer(1))
    device.turn()
    assert "which was no command" in device.verdict
    assert results == [(True, {})]


def test_command_for_a_dead_device_fails_at_once(device: HostileDevice) -> None:
    device.host.close()
    ((ok, fields),) = command(device)
    assert not ok
    assert fields["error"]
