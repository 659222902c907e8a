# SPDX-License-Identifier: BSD-3-Clause
"""vCPUs that the guest does not have: they wait, and come and go, whatever else happens."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.machine.vcpu import VcpuSet
from tests.crosvm_py.machine.scripted_vcpu import TIMEOUT_SECONDS, RecordingBus, ScriptedVcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Playground:
    """vCPUs 0 and 1, of which the guest has the first at the start; they only enter and leave."""

    def __init__(self) -> None:
        self.scripted = [ScriptedVcpu(index) for index in range(2)]
        self.entered = [threading.Event() for _ in self.scripted]
        for vcpu, entered in zip(self.scripted, self.entered, strict=True):
            vcpu.run = self._run_of(vcpu, entered)  # type: ignore[method-assign]  # of one test
        self.vcpus = VcpuSet(
            self.scripted, RecordingBus(), RecordingBus(), lambda *_: None, absent=(1,)
        )
        self.vcpus.start()
        self.vcpus.wait_confined()

    def _run_of(self, vcpu: ScriptedVcpu, entered: threading.Event) -> Callable[[], int]:
        def run() -> int:
            entered.set()
            return ScriptedVcpu.run(vcpu)

        return run

    def is_running(self, index: int) -> bool:
        self.entered[index].clear()
        return self.entered[index].wait(TIMEOUT_SECONDS)

    def wait_spare(self) -> None:
        """Wait until vCPU 1 has left the guest."""
        deadline = threading.Event()
        for _ in range(int(TIMEOUT_SECONDS * 1000)):
            if self.vcpus.look()[1].spare:
                return
            deadline.wait(0.001)
        raise AssertionError(self.vcpus.look())


@pytest.fixture
def playground() -> Iterator[Playground]:
    made = Playground()
    yield made
    assert made.vcpus.stop(TIMEOUT_SECONDS)


def name_of_thread(thread_id: int) -> str:
    return Path(f"/proc/self/task/{thread_id}/comm").read_text(encoding="ascii").strip()


def test_vcpu_that_the_guest_does_not_have_waits_switched_off(playground: Playground) -> None:
    playground.wait_spare()
    assert playground.is_running(0)
    assert not playground.entered[1].is_set()
    assert playground.scripted[1].times_off == 1
    assert (playground.vcpus.count, playground.vcpus.threads) == (1, 2)
    assert name_of_thread(playground.vcpus.thread_ids[1]) == "spare1"


def test_vcpu_comes_goes_and_comes_again(playground: Playground) -> None:
    for times in (1, 2):
        playground.wait_spare()
        assert playground.scripted[1].times_off == times
        playground.vcpus.bring(1)
        assert playground.is_running(1)
        assert name_of_thread(playground.vcpus.thread_ids[1]) == "vcpu1"
        assert playground.vcpus.count == 2
        playground.vcpus.take_away(1)
    playground.wait_spare()
    assert playground.is_running(0)


def test_spare_vcpu_does_not_hold_up_a_pause(playground: Playground) -> None:
    playground.wait_spare()
    playground.vcpus.pause()
    assert playground.vcpus.wait_paused(TIMEOUT_SECONDS)
    playground.vcpus.bring(1)  # while the VM is paused
    playground.entered[1].clear()
    assert playground.vcpus.wait_paused(TIMEOUT_SECONDS)
    assert not playground.entered[1].is_set()
    playground.vcpus.resume()
    assert playground.is_running(1)


def test_vcpu_that_goes_while_the_vm_is_paused_is_spare_afterwards(playground: Playground) -> None:
    playground.vcpus.bring(1)
    assert playground.is_running(1)
    playground.vcpus.pause()
    assert playground.vcpus.wait_paused(TIMEOUT_SECONDS)
    playground.vcpus.take_away(1)
    assert playground.vcpus.wait_paused(TIMEOUT_SECONDS)
    playground.vcpus.resume()
    playground.wait_spare()
