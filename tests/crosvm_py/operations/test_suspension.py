# SPDX-License-Identifier: BSD-3-Clause
"""Suspend and resume: the order of the steps, and what can prevent them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.operations.suspension import Suspension
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vmm.supervisor import Supervisor


pytestmark = pytest.mark.usefixtures("lines")


class FakeDevice:
    def __init__(self, vm: FakeVm, name: str) -> None:
        self._vm = vm
        self._name = name

    def pause(self, then: Callable[[], None]) -> None:
        self._ask("pause", then)

    def resume(self, then: Callable[[], None]) -> None:
        self._ask("resume", then)

    def _ask(self, what: str, then: Callable[[], None]) -> None:
        self._vm.events.append(f"{self._name} {what}")
        self._vm.waiting.append(then)


class FakeVm:
    """Board, vCPUs, clocks and supervisor in one; it records the calls."""

    def __init__(self, *names: str) -> None:
        self.events: list[str] = []
        self.waiting: list[Callable[[], None]] = []
        self.devices = [FakeDevice(self, name) for name in names]
        self.stands_still = True
        # Each plays its part and nothing else, so the types that they really have do not matter.
        machine, vcpus = cast("Board", self), cast("VcpuSet", self)
        self.suspension = Suspension(machine, vcpus, cast("Supervisor", self))
        self.answers: list[Response] = []

    def make_clocks(self) -> FakeVm:
        return self

    def hold(self) -> None:
        self.events.append("clocks hold")

    def go_on(self) -> None:
        self.events.append("clocks go on")

    def pause(self) -> None:
        self.events.append("vcpus pause")

    def wait_paused(self, _seconds: float) -> bool:
        return self.stands_still

    def resume(self) -> None:
        self.events.append("vcpus resume")

    def ask(self, what: str) -> None:
        answer = self.suspension.suspend() if what == "suspend" else self.suspension.resume()
        if isinstance(answer, Pending):
            answer.deliver_to(self.answers.append)
        else:
            self.answers.append(answer)

    def answer(self) -> None:
        """Let one device say that it is done."""
        self.waiting.pop(0)()

    def take(self) -> list[str]:
        events, self.events = self.events, []
        return events


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm("block:0", "rng")


def suspended(vm: FakeVm) -> FakeVm:
    vm.ask("suspend")
    vm.answer()
    vm.answer()
    vm.take()
    vm.answers.clear()
    return vm


def test_suspend_stops_vcpus_first_and_answers_when_every_device_is_held(vm: FakeVm) -> None:
    vm.ask("suspend")
    assert vm.take() == ["vcpus pause", "clocks hold", "block:0 pause", "rng pause"]
    vm.answer()
    assert vm.answers == []
    vm.answer()
    assert vm.answers == [Done()]


def test_resume_lets_devices_go_first_and_then_clocks_and_vcpus(vm: FakeVm) -> None:
    suspended(vm).ask("resume")
    assert vm.take() == ["block:0 resume", "rng resume"]
    vm.answer()
    assert (vm.take(), vm.answers) == ([], [])
    vm.answer()
    assert vm.take() == ["clocks go on", "vcpus resume"]
    assert vm.answers == [Done()]


def test_suspend_of_a_suspended_vm_changes_nothing(vm: FakeVm) -> None:
    suspended(vm).ask("suspend")
    assert (vm.take(), vm.answers) == ([], [Done()])


def test_resume_of_a_running_vm_changes_nothing(vm: FakeVm) -> None:
    vm.ask("resume")
    assert (vm.take(), vm.answers) == ([], [Done()])


@pytest.mark.parametrize("second", ["suspend", "resume"])
def test_second_client_is_refused_while_the_first_waits(vm: FakeVm, second: str) -> None:
    vm.ask("suspend")
    vm.take()
    vm.ask(second)
    assert vm.take() == []
    assert vm.answers == [Failed("a suspend, resume or core dump is under way")]


def test_vcpus_that_do_not_stand_still_go_on(vm: FakeVm) -> None:
    vm.stands_still = False
    vm.ask("suspend")
    assert vm.take() == ["vcpus pause", "vcpus resume"]
    assert vm.answers == [Failed("the vCPUs did not stand still within 5 s")]
    vm.stands_still = True
    vm.ask("suspend")
    assert vm.take()[0] == "vcpus pause"


def test_vm_without_devices_suspends_at_once() -> None:
    vm = FakeVm()
    vm.ask("suspend")
    vm.ask("resume")
    assert vm.answers == [Done(), Done()]
    assert vm.take() == ["vcpus pause", "clocks hold", "clocks go on", "vcpus resume"]
