# SPDX-License-Identifier: BSD-3-Clause
"""Requests of control clients reach the part of the VM that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.operations.dispatch import request_handler
from crosvm_py.operations.operation import OPERATIONS, RunningVm
from crosvm_py.requests.catalogue import ALL, SERVED
from crosvm_py.requests.life import PowerButton, Reboot, Resume, Stop, Suspend
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.requests.vm import InjectNmi
from sys_util.errors import ConfigError

if TYPE_CHECKING:
    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.supervisor import Supervisor
from sys_util.wire import Message


class FakeVm:
    """Board, supervisor and suspension in one; it notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.devices: tuple[DeviceProcess, ...] = ()
        self.pending = Pending()
        # Each plays its part and nothing else, so the types that they really have do not matter.
        self.handle = request_handler(
            RunningVm(
                cast("Board", self),
                cast("Supervisor", self),
                cast("Suspension", self),
                cast("VcpuSet", self),
                lambda vm_exit, reason: self.calls.append(f"end {vm_exit.name}: {reason}"),
            )
        )

    def suspend(self) -> Pending:
        self.calls.append("suspend")
        return self.pending

    def resume(self) -> Response:
        self.calls.append("resume")
        return Failed("a suspend, resume or core dump is under way")

    def inject_nmi(self) -> None:
        self.calls.append("nmi")

    def press_power_button(self) -> None:
        self.calls.append("power button")


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        (Stop(), f"end {VmExit.STOPPED.name}: stopped by a client"),
        (PowerButton(), "power button"),
        (InjectNmi(), "nmi"),
    ],
)
def test_request_is_done_at_once(vm: FakeVm, request_: Request, call: str) -> None:
    assert vm.handle(request_) == Done()
    assert vm.calls == [call]


def test_suspend_is_answered_when_it_is_done(vm: FakeVm) -> None:
    assert vm.handle(Suspend()) is vm.pending
    assert vm.calls == ["suspend"]


def test_resume_passes_the_refusal_on(vm: FakeVm) -> None:
    assert vm.handle(Resume()) == Failed("a suspend, resume or core dump is under way")


@pytest.mark.usefixtures("vm")
def test_every_request_has_an_operation() -> None:
    assert set(SERVED) == OPERATIONS.keys()


def test_requests_and_answers_have_numbers_of_their_own() -> None:
    answers: set[type[Message]] = {Failed, *(request.ANSWER for request in ALL)}
    numbers = [request.TYPE for request in ALL] + [answer.TYPE for answer in answers]
    assert len(set(numbers)) == len(numbers)


def test_reboot_is_refused_where_the_guest_boots_once(vm: FakeVm) -> None:
    with pytest.raises(ConfigError, match="not started with --reboot"):
        vm.handle(Reboot())
