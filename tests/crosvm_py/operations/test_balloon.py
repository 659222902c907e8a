# SPDX-License-Identifier: BSD-3-Clause
"""Requests about the balloon, on their way to its process and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.operations.balloon import ask_balloon
from crosvm_py.requests import balloon, catalogue, protocol
from crosvm_py.requests.balloon import BalloonAdjust, BalloonQuery, BalloonSet, BalloonState
from devices.virtio.balloon.device import Balloon, BalloonSpec
from sys_util.errors import ConfigError, ProtocolError
from sys_util.guest_memory import GuestMemory
from sys_util.wire import encode
from tests.crosvm_py.operations.running_vm import vm_of
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.link import CommandResult

STATE: dict[str, object] = {
    "target_pages": 512,
    "actual_pages": 100,
    "released_bytes": 1 << 40,
    "has_driver": True,
    "has_stats": True,
    "updates": 3,
    "stats": [[4, 1000], [5, 2000]],
    "hint_done": True,
    "hinted_bytes": 0,
    "clamped": False,
}
ANSWER = BalloonState(512, 100, 1 << 40, True, True, 3, ((4, 1000), (5, 2000)), True, 0, False)


class FakeDevice:
    """A device process that gives one answer to everything."""

    def __init__(self, name: str, ok: bool, fields: dict[str, object]) -> None:
        self.name = name
        self.asked: list[tuple[str, dict[str, object]]] = []
        self._result = (ok, fields)

    def command(self, verb: str, arguments: dict[str, object], then: CommandResult) -> None:
        self.asked.append((verb, arguments))
        then(*self._result)


def ask(
    device: FakeDevice, request: BalloonSet | BalloonAdjust | BalloonQuery
) -> protocol.Response:
    devices = cast("list[DeviceProcess]", [FakeDevice("rng", False, {}), device])
    answers: list[protocol.Response] = []
    ask_balloon(vm_of(*devices), request).deliver_to(answers.append)
    (answer,) = answers
    return answer


@pytest.mark.parametrize(
    ("request_", "verb", "arguments"),
    [
        pytest.param(BalloonSet(5 * 4096 + 4095), "set", {"pages": 5}, id="set"),
        pytest.param(BalloonAdjust(-7), "adjust", {"pages": -7}, id="adjust"),
        pytest.param(BalloonQuery(False, False), "state", {"hint": False}, id="state"),
        pytest.param(BalloonQuery(True, True), "refresh", {"hint": True}, id="refresh"),
    ],
)
def test_request_becomes_a_command(
    request_: BalloonSet, verb: str, arguments: dict[str, object]
) -> None:
    device = FakeDevice("balloon", True, STATE)
    assert ask(device, request_) == ANSWER
    assert device.asked == [(verb, arguments)]


@pytest.mark.parametrize(
    ("ok", "fields", "reason"),
    [
        pytest.param(False, {"error": "not today"}, "not today", id="refused"),
        pytest.param(False, {}, "refused", id="no-reason"),
        pytest.param(True, {}, "talks nonsense", id="empty"),
        pytest.param(True, STATE | {"actual_pages": -1}, "not a whole number", id="negative"),
        pytest.param(True, STATE | {"has_driver": 1}, "not a boolean", id="type"),
        pytest.param(True, STATE | {"stats": [[4, 1]] * 99}, "not an array", id="many"),
        pytest.param(True, STATE | {"stats": [[4, 1, 1]]}, "not an array of 2", id="pair"),
        pytest.param(True, STATE | {"updates": 1 << 64}, "not a whole number", id="big"),
    ],
)
def test_bad_answer_of_the_device_is_a_reason(
    ok: bool, fields: dict[str, object], reason: str
) -> None:
    answer = ask(FakeDevice("balloon", ok, fields), BalloonSet(0))
    assert isinstance(answer, protocol.Failed)
    assert reason in answer.reason


def test_vm_without_a_balloon_says_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match=r"no balloon \(crosvm run --balloon gives it one"):
        ask(FakeDevice("block:0", True, STATE), BalloonSet(0))


@pytest.mark.parametrize(
    "request_",
    [BalloonSet(1 << 63), BalloonAdjust(-(1 << 32)), BalloonQuery(True, False)],
    ids=["set", "adjust", "query"],
)
def test_messages_cross_as_they_are(request_: BalloonSet) -> None:
    assert catalogue.REQUESTS.decode(encode(request_)) == request_
    assert catalogue.RESPONSES.decode(encode(ANSWER)) == ANSWER


@pytest.mark.parametrize(
    "request_", [BalloonSet(-1), BalloonAdjust(1 << 33), BalloonAdjust(-1 << 33)]
)
def test_messages_out_of_range_are_refused(request_: BalloonSet) -> None:
    with pytest.raises(ProtocolError, match="is not a"):
        catalogue.REQUESTS.decode(encode(request_))


@pytest.fixture
def real() -> Iterator[DriverSide]:
    memory = GuestMemory.create([(0, 8 << 20)])
    side = DriverSide(Balloon(BalloonSpec()), memory)
    yield side
    side.close()
    memory.close()


def test_what_the_real_device_answers_is_accepted(real: DriverSide) -> None:
    fields = real.device.command("set", {"pages": 1 << 40})
    answer = ask(FakeDevice("balloon", True, fields), BalloonSet(1 << 52))
    assert isinstance(answer, BalloonState)
    assert (answer.target_pages * balloon.PAGE_BYTES, answer.clamped) == (8 << 20, True)
