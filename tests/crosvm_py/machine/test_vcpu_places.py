# SPDX-License-Identifier: BSD-3-Clause
"""The reported places of vCPUs: in the guest, in a device, held, or ended."""

from __future__ import annotations

import threading

from crosvm_py.machine.vcpu import VcpuSet
from crosvm_py.machine.vcpu_places import find_places
from crosvm_py.requests.debug import MAX_PLACE_CHARS
from tests.crosvm_py.machine.scripted_vcpu import (
    OUT,
    TIMEOUT_SECONDS,
    RecordingBus,
    ScriptedVcpu,
    io,
)


def _ignore(*_: object) -> None:
    pass


class GuestThatStays(ScriptedVcpu):
    """A vCPU that enters the guest and stays there until the test lets it go."""

    def __init__(self) -> None:
        super().__init__(7)
        self.entered = threading.Event()
        self.left = False

    def run(self) -> int:
        self.entered.set()
        while not self.left:  # not in another function, as KVM_RUN is not
            pass
        return super().run()


def test_vcpu_in_the_guest_is_there() -> None:
    vcpu = GuestThatStays()
    vcpus = VcpuSet([vcpu], RecordingBus(), RecordingBus(), _ignore)
    vcpus.start()
    assert vcpu.entered.wait(TIMEOUT_SECONDS)
    (place,) = find_places(vcpus)
    vcpu.left = True
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert (place.index, place.place, place.where) == (7, "guest", "")
    assert place.thread_id


def test_vcpu_in_a_device_is_there_with_the_way_to_it() -> None:
    entered, leave = threading.Event(), threading.Event()

    class SlowBus(RecordingBus):
        def write(self, address: int, size: int, value: int) -> None:
            entered.set()
            assert leave.wait(TIMEOUT_SECONDS)

    vcpus = VcpuSet(
        [ScriptedVcpu(0, [io(OUT, 1, 0x80, b"\x01")])], SlowBus(), RecordingBus(), _ignore
    )
    vcpus.start()
    assert entered.wait(TIMEOUT_SECONDS)
    (place,) = find_places(vcpus)
    leave.set()
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert place.place == "exit"
    assert "write (machine/test_vcpu_places.py:" in place.where
    assert len(place.where) <= MAX_PLACE_CHARS


def test_vcpu_that_is_held_is_asked_for_its_state() -> None:
    vcpus = VcpuSet([ScriptedVcpu()], RecordingBus(), RecordingBus(), _ignore)
    vcpus.start(paused=True)
    vcpus.wait_confined()
    assert vcpus.wait_paused(TIMEOUT_SECONDS)
    (place,) = find_places(vcpus)
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert (place.place, place.where) == ("held", "halted: waits for an interrupt")


def test_vcpu_whose_thread_has_ended_is_nowhere() -> None:
    vcpus = VcpuSet([ScriptedVcpu()], RecordingBus(), RecordingBus(), _ignore)
    assert [place[1:] for place in find_places(vcpus)] == [(0, "ended", "")]


def test_vcpu_that_the_guest_does_not_have_is_spare() -> None:
    vcpus = VcpuSet([ScriptedVcpu(0)], RecordingBus(), RecordingBus(), _ignore, absent=(0,))
    vcpus.start()
    vcpus.wait_confined()
    for _ in range(int(TIMEOUT_SECONDS * 1000)):
        (place,) = find_places(vcpus)
        if place.place == "spare":
            break
        threading.Event().wait(0.001)
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert (place.place, place.where) == ("spare", "")
