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


class FakeCpus:
    """vCPUs that can come and go, if the guest has let go of the last ones."""

    def __init__(self, *, is_busy: bool) -> None:
        self._is_busy = is_busy
        self.counts: list[int] = []

    def is_busy_for(self, count: int) -> bool:
        if count > 8:
            raise ConfigError(f"{count} vCPUs are too many")
        return self._is_busy

    def resize(self, count: int) -> None:
        self.counts.append(count)


def vm_with(*devices: FakeBalloon, hotplug: FakeCpus | None = None) -> RunningVm:
    vm = SimpleNamespace(
        vcpus=SimpleNamespace(count=2),
        machine=SimpleNamespace(memory_bytes=MEMORY_BYTES, growth=None, cpu_hotplug=hotplug),
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
        (Resize(3, None, 0), r"there are 2 vCPUs, and no other can come or go \(--cpus N,max=M"),
        (Resize(2, MEMORY_BYTES + 4096, 0), "has one size"),
        (Resize(balloon_bytes=MEMORY_BYTES + 4096), "larger than the memory"),
    ],
)
def test_impossible_part_leaves_everything_as_it_is(request_: Resize, reason: str) -> None:
    balloon = FakeBalloon(STATE)
    with pytest.raises(ConfigError, match=reason):
        resize(vm_with(balloon), request_)
    assert not balloon.asked


def test_vcpus_come_and_go_where_they_can() -> None:
    cpus, balloon = FakeCpus(is_busy=False), FakeBalloon(STATE)
    assert answer_to(vm_with(balloon, hotplug=cpus), Resize(4, None, 0)) == Resized(is_busy=False)
    assert (cpus.counts, balloon.asked) == ([4], [SetTarget(0)])


def test_guest_that_has_not_let_go_yet_leaves_everything_as_it_is() -> None:
    cpus, balloon = FakeCpus(is_busy=True), FakeBalloon(STATE)
    assert answer_to(vm_with(balloon, hotplug=cpus), Resize(1, None, 0)) == Resized(is_busy=True)
    assert (cpus.counts, balloon.asked) == ([], [])


@pytest.mark.parametrize(
    "request_", [Resize(9, None, 0), Resize(4, MEMORY_BYTES + 4096), Resize(4, balloon_bytes=0)]
)
def test_impossible_part_leaves_the_vcpus_as_they_are(request_: Resize) -> None:
    cpus = FakeCpus(is_busy=False)
    with pytest.raises(ConfigError):
        resize(vm_with(hotplug=cpus), request_)
    assert cpus.counts == []


def test_vm_without_a_balloon_says_so() -> None:
    with pytest.raises(ConfigError, match="this VM has no balloon"):
        resize(vm_with(), Resize(balloon_bytes=0))


@pytest.mark.parametrize("request_", [Resize(), Resize((1 << 32) - 1, (1 << 64) - 1, 0)])
def test_messages_cross_as_they_are(request_: Resize) -> None:
    assert catalogue.REQUESTS.decode(encode(request_)) == request_
    assert catalogue.RESPONSES.decode(encode(Resized(is_busy=True))) == Resized(is_busy=True)
