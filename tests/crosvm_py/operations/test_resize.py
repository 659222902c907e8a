# SPDX-License-Identifier: BSD-3-Clause
"""A request for other sizes is checked as a whole before anything is changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.kinds.balloon import BALLOON
from crosvm_py.operations.resize import resize
from crosvm_py.requests import catalogue
from crosvm_py.requests.protocol import Failed
from crosvm_py.requests.resize import Resize, Resized
from devices.virtio.commands import BalloonState, Command, Refused, SetTarget
from sys_util.errors import ConfigError
from sys_util.wire import encode

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vmm.link import CommandResult
    from sys_util.wire import Message

MEMORY_BYTES = 64 << 20
STATE = BalloonState(0, 0, 0, False, False, 0, (), True, 0, False)


class FakeBalloon:
    """A balloon's process with one answer."""

    kind, name = BALLOON, "balloon"

    def __init__(self, answer: Message) -> None:
        self.asked: list[Command] = []
        self._answer = answer

    def command(self, command: Command, then: CommandResult) -> None:
        self.asked.append(command)
        then(self._answer)


def vm_with(*devices: FakeBalloon) -> RunningVm:
    vm = SimpleNamespace(
        vcpus=SimpleNamespace(count=2),
        machine=SimpleNamespace(memory_bytes=MEMORY_BYTES, growth=None),
        supervisor=SimpleNamespace(devices=devices),
    )
    return cast("RunningVm", vm)


def answer_to(vm: RunningVm, request: Resize) -> Response:
    answers: list[Response] = []
    answer = resize(vm, request)
    if isinstance(answer, Resized):
        return answer
    answer.deliver_to(answers.append)
    (found,) = answers
    return found


def test_balloon_gets_whole_pages() -> None:
    balloon = FakeBalloon(STATE)
    request = Resize(2, MEMORY_BYTES, 8191)
    assert answer_to(vm_with(balloon), request) == Resized(is_busy=False)
    assert balloon.asked == [SetTarget(1)]


def test_balloon_that_refuses_is_told() -> None:
    assert answer_to(vm_with(FakeBalloon(Refused("no"))), Resize(balloon_bytes=0)) == Failed(
        "balloon: no"
    )


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Resize(3, None, 0), "the number of vCPUs"),
        (Resize(2, MEMORY_BYTES + 4096, 0), "has one size"),
        (Resize(balloon_bytes=MEMORY_BYTES + 4096), "larger than the memory"),
    ],
)
def test_impossible_part_leaves_everything_as_it_is(request_: Resize, reason: str) -> None:
    balloon = FakeBalloon(STATE)
    with pytest.raises(ConfigError, match=reason):
        resize(vm_with(balloon), request_)
    assert not balloon.asked


def test_vm_without_a_balloon_says_so() -> None:
    with pytest.raises(ConfigError, match="this VM has no balloon"):
        resize(vm_with(), Resize(balloon_bytes=0))


@pytest.mark.parametrize("request_", [Resize(), Resize((1 << 32) - 1, (1 << 64) - 1, 0)])
def test_messages_cross_as_they_are(request_: Resize) -> None:
    assert catalogue.REQUESTS.decode(encode(request_)) == request_
    assert catalogue.RESPONSES.decode(encode(Resized(is_busy=True))) == Resized(is_busy=True)
