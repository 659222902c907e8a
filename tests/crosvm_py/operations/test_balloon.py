# SPDX-License-Identifier: BSD-3-Clause
"""Requests about the balloon, on their way to its process and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.kinds.balloon import BALLOON
from crosvm_py.kinds.block import BLOCK
from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.rng import RNG
from crosvm_py.operations import balloon
from crosvm_py.requests import catalogue, protocol
from crosvm_py.requests.balloon import PAGE_BYTES, BalloonAdjust, BalloonQuery, BalloonSet
from devices.virtio.balloon.device import Balloon, BalloonSpec
from devices.virtio.commands import (
    AdjustTarget,
    BalloonState,
    Command,
    Refused,
    SetTarget,
    TellState,
)
from sys_util.errors import ConfigError, ProtocolError
from sys_util.guest_memory import GuestMemory
from sys_util.wire import encode
from tests.crosvm_py.operations.running_vm import vm_of
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Request
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.link import CommandResult
    from sys_util.wire import Message

ANSWER = BalloonState(512, 100, 1 << 40, True, True, 3, ((4, 1000), (5, 2000)), True, 0, False)


class FakeDevice:
    """A device process that gives one answer to everything."""

    def __init__(self, kind: DeviceKind, answer: Message) -> None:
        self.kind, self.name = kind, kind.name
        self.asked: list[Command] = []
        self._answer = answer

    def command(self, command: Command, then: CommandResult) -> None:
        self.asked.append(command)
        then(self._answer)


def ask(device: FakeDevice, request: Request) -> protocol.Response:
    vm = vm_of(*cast("list[DeviceProcess]", [FakeDevice(RNG, Refused("no")), device]))
    answers: list[protocol.Response] = []
    match request:
        case BalloonSet():
            pending = balloon.set_balloon(vm, request)
        case BalloonAdjust():
            pending = balloon.adjust_balloon(vm, request)
        case BalloonQuery():
            pending = balloon.query_balloon(vm, request)
        case _:
            raise AssertionError(request)
    pending.deliver_to(answers.append)
    (answer,) = answers
    return answer


@pytest.mark.parametrize(
    ("request_", "command"),
    [
        pytest.param(BalloonSet(5 * 4096 + 4095), SetTarget(5), id="set"),
        pytest.param(BalloonAdjust(-7), AdjustTarget(-7), id="adjust"),
        pytest.param(BalloonQuery(False, False), TellState(), id="state"),
        pytest.param(BalloonQuery(True, True), TellState(refresh=True, hint=True), id="refresh"),
    ],
)
def test_request_becomes_a_command(request_: Request, command: Command) -> None:
    device = FakeDevice(BALLOON, ANSWER)
    assert ask(device, request_) == ANSWER
    assert device.asked == [command]


def test_refusal_of_the_device_is_a_reason() -> None:
    answer = ask(FakeDevice(BALLOON, Refused("not today")), BalloonSet(0))
    assert answer == protocol.Failed("balloon: not today")


def test_vm_without_a_balloon_says_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match=r"no balloon \(crosvm run --balloon gives it one"):
        ask(FakeDevice(BLOCK, ANSWER), BalloonSet(0))


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
    state = real.device.command(SetTarget(1 << 40))
    assert isinstance(state, BalloonState)
    assert (state.target_pages * PAGE_BYTES, state.clamped) == (8 << 20, True)
    assert catalogue.RESPONSES.decode(encode(state)) == state
