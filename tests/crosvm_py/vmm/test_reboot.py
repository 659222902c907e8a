# SPDX-License-Identifier: BSD-3-Clause
"""The order of a reboot, and what it waits for, with a machine that only remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.vmm.reboot import Rebooting
from sys_util.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from sys_util.event_loop import EventLoop


class Scene:
    """Loop, machine and vCPUs in one; every call is remembered by name."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.soon: list[Callable[[], None]] = []
        self.let_go: list[Callable[[], None]] = []
        self.ends: list[tuple[VmExit, str]] = []
        self.stands_still = True
        self.refusal: HostError | None = None
        self.on_reset: Callable[[str], bool] = lambda _reason: False

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        """Run what was to be called soon."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def park(self) -> None:
        self.calls.append("park")

    def pause(self) -> None:
        self.calls.append("pause")

    def wait_paused(self, _seconds: float) -> bool:
        return self.stands_still

    def resume(self) -> None:
        self.calls.append("resume")

    def power_on_devices(self, then: Callable[[], None]) -> None:
        self.calls.append("devices")
        self.let_go.append(then)

    def restart(self) -> None:
        self.calls.append("restart")
        if self.refusal is not None:
            raise self.refusal

    def end(self, vm_exit: VmExit, reason: str) -> None:
        self.ends.append((vm_exit, reason))


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def rebooting(scene: Scene) -> Rebooting:
    made = Rebooting(
        cast("EventLoop", scene), cast("Board", scene), cast("VcpuSet", scene), scene.end
    )
    made.on_event = lambda event, by_client: scene.calls.append(f"{event} {by_client}")
    return made


def test_reset_waits_for_devices_before_the_machine_restarts(
    scene: Scene, rebooting: Rebooting
) -> None:
    assert scene.on_reset("a reset")
    scene.turn()
    assert scene.calls == ["park", "rebooting False", "pause", "devices"]
    assert rebooting.is_under_way
    scene.let_go.pop()()
    scene.turn()
    assert scene.calls[4:] == ["restart", "resume", "rebooted False"]
    assert not rebooting.is_under_way


def test_resets_of_all_vcpus_at_once_are_one_reboot(scene: Scene, rebooting: Rebooting) -> None:
    for _ in range(3):
        rebooting.request("a reset")
    scene.turn()
    rebooting.request("a reset")
    scene.turn()
    scene.let_go.pop()()
    scene.turn()
    assert scene.calls.count("restart") == 1
    rebooting.request("a reset")
    scene.turn()
    assert scene.calls.count("devices") == 2


def test_reset_of_a_vm_that_is_held_is_done_when_it_may_run(
    scene: Scene, rebooting: Rebooting
) -> None:
    rebooting.is_held = lambda: True
    rebooting.request("a reset")
    scene.turn()
    assert "devices" not in scene.calls
    rebooting.is_held = lambda: False
    assert not rebooting.may_run()
    scene.let_go.pop()()
    scene.turn()
    assert scene.calls[-2:] == ["resume", "rebooted False"]
    assert rebooting.may_run()


def test_client_is_answered_once_when_the_guest_runs(scene: Scene, rebooting: Rebooting) -> None:
    answers: list[str] = []
    rebooting.reboot(answers.append)
    rebooting.reboot(answers.append)
    scene.turn()
    scene.let_go.pop()()
    scene.turn()
    assert answers == ["", ""]
    assert "rebooted True" in scene.calls
    rebooting.close()
    assert answers == ["", ""]


def test_client_that_waits_is_answered_when_the_vm_ends(rebooting: Rebooting) -> None:
    answers: list[str] = []
    rebooting.reboot(answers.append)
    rebooting.close()
    assert answers == ["the VM ends"]


def test_device_that_is_gone_but_not_dead_delays_the_restart(
    scene: Scene, rebooting: Rebooting
) -> None:
    rebooting.is_settled = lambda: False
    rebooting.request("a reset")
    scene.turn()
    scene.let_go.pop()()
    for _ in range(3):
        scene.turn()
    assert "restart" not in scene.calls
    rebooting.is_settled = lambda: True
    scene.turn()
    assert "restart" in scene.calls


def test_vcpu_that_does_not_stop_ends_the_vm(scene: Scene, rebooting: Rebooting) -> None:
    scene.stands_still = False
    rebooting.request("a reset")
    scene.turn()
    assert scene.ends == [
        (VmExit.ERROR, "the guest cannot boot again: the vCPUs did not stand still within 5 s")
    ]


def test_host_that_refuses_ends_the_vm_with_its_reason(scene: Scene, rebooting: Rebooting) -> None:
    scene.refusal = HostError("KVM_SET_SREGS", "on vCPU 0")
    rebooting.request("a reset")
    scene.turn()
    scene.let_go.pop()()
    scene.turn()
    assert scene.ends == [(VmExit.ERROR, "the guest cannot boot again: KVM_SET_SREGS on vCPU 0")]
    assert scene.calls[-1] == "restart"
