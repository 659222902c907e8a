# SPDX-License-Identifier: BSD-3-Clause
"""The vCPU loop and its requests, with a scripted processor instead of KVM."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.machine.vcpu import VcpuSet
from kvm._kvm import lib
from sys_util.errors import HostError
from tests.crosvm_py.machine.scripted_vcpu import (
    DATA_OFFSET,
    IN,
    OUT,
    SHUTDOWN,
    TIMEOUT_SECONDS,
    Outcome,
    RecordingBus,
    ScriptedVcpu,
    exits,
    io,
    mmio,
    play,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.vcpu_exit import VmExitReason


@pytest.mark.parametrize(
    ("size", "data", "values"),
    [
        pytest.param(1, b"\x41", [0x41], id="byte"),
        pytest.param(2, b"\x34\x12", [0x1234], id="word"),
        pytest.param(4, b"\x78\x56\x34\x12", [0x1234_5678], id="dword"),
        pytest.param(1, b"abc", [0x61, 0x62, 0x63], id="string"),
        pytest.param(2, b"\x01\x00\x02\x00", [1, 2], id="word-string"),
    ],
)
def test_out_writes_each_element(size: int, data: bytes, values: list[int]) -> None:
    bus = RecordingBus()
    play(io(OUT, size, 0x3F8, data), pio=bus)
    assert bus.accesses == [(0x3F8, size, value) for value in values]


@pytest.mark.parametrize(
    ("size", "answers", "data"),
    [
        pytest.param(1, [0xFF], b"\xff", id="byte"),
        pytest.param(2, [0xFFFF], b"\xff\xff", id="word"),
        pytest.param(4, [0x8000_0001], b"\x01\x00\x00\x80", id="dword"),
        pytest.param(2, [1, 2, 3], b"\x01\x00\x02\x00\x03\x00", id="string"),
    ],
)
def test_in_stores_each_element(size: int, answers: list[int], data: bytes) -> None:
    bus = RecordingBus(answers)
    _, page = play(io(IN, size, 0x64, bytes(len(data))), pio=bus)
    assert bytes(page[DATA_OFFSET : DATA_OFFSET + len(data) + 1]) == data + b"\0"
    assert bus.accesses == [(0x64, size)] * len(answers)


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_mmio_write_ignores_what_follows_the_value(length: int) -> None:
    bus = RecordingBus()
    play(mmio(0xD000_0000, length, 0x8877_6655_4433_2211, is_write=True), mmio_bus=bus)
    value = int.from_bytes(bytes.fromhex("1122334455667788")[:length], "little")
    assert bus.accesses == [(0xD000_0000, length, value)]


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_mmio_read_stores_the_value(length: int) -> None:
    ones = (1 << 8 * length) - 1
    bus = RecordingBus([ones])
    _, page = play(mmio(0xD000_0000, length, 0, is_write=False), mmio_bus=bus)
    stored = bytes(page[lib.RUN_MMIO_DATA : lib.RUN_MMIO_DATA + 8])
    assert stored == ones.to_bytes(8, "little")


def test_odd_mmio_write_goes_byte_by_byte() -> None:
    bus = RecordingBus()
    play(mmio(0x1FFD, 3, 0x33_2211, is_write=True), mmio_bus=bus)
    assert bus.accesses == [(0x1FFD, 1, 0x11), (0x1FFE, 1, 0x22), (0x1FFF, 1, 0x33)]


def test_odd_mmio_read_goes_byte_by_byte() -> None:
    bus = RecordingBus([0x11, 0x22, 0x33])
    _, page = play(mmio(0x1FFD, 3, 0, is_write=False), mmio_bus=bus)
    assert bytes(page[lib.RUN_MMIO_DATA : lib.RUN_MMIO_DATA + 4]) == b"\x11\x22\x33\0"


def test_interrupted_and_waiting_processors_go_on() -> None:
    bus = RecordingBus()
    play(
        exits(0, result=-errno.EINTR),
        exits(0, result=-errno.EAGAIN),
        exits(lib.KVM_EXIT_INTR),
        io(OUT, 1, 0x80, b"\x01"),
        pio=bus,
        index=1,
    )
    assert bus.accesses == [(0x80, 1, 1)]


def test_first_processor_that_kvm_cannot_run_ends_the_vm() -> None:
    reason, _ = play(exits(0, result=-errno.EAGAIN))
    assert reason.kind == VmExit.CRASH
    assert reason.text.startswith("vCPU 0: KVM_RUN: Resource temporarily unavailable (no more proc")


def test_processor_that_waits_for_its_startup_can_be_stopped() -> None:
    """KVM_RUN says so before it looks at ``immediate_exit``."""
    waiting = ScriptedVcpu(1, [exits(0, result=-errno.EAGAIN)] * 1_000_000)
    vcpus = VcpuSet([waiting], RecordingBus(), RecordingBus(), lambda *_: None)
    waiting.set_immediate_exit = lambda *, enabled: None  # type: ignore[method-assign]  # ignored
    vcpus.start()
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert waiting.steps_left


def test_refused_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    vcpus = VcpuSet([ScriptedVcpu()], RecordingBus(), RecordingBus(), lambda *_: None)
    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(HostError, match=r"^start a thread for each vCPU \(no more processes"):
        vcpus.start()


def test_device_bug_is_logged_and_ends_the_vm(capfd: pytest.CaptureFixture[str]) -> None:
    reason, _ = play(io(IN, 1, 0x64, b"\0"), pio=RecordingBus())
    assert reason == (VmExit.CRASH, "vCPU 0: IndexError: pop from empty list")
    assert "IndexError" in capfd.readouterr().err


def test_only_the_first_vcpu_is_reported() -> None:
    outcome = Outcome()
    vcpus = VcpuSet(
        [ScriptedVcpu(index, [SHUTDOWN]) for index in range(4)],
        RecordingBus(),
        RecordingBus(),
        outcome.on_exit,
    )
    vcpus.start()
    outcome.wait()
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert len(outcome.reports) == 1


def test_stop_is_not_reported_and_wakes_the_paused() -> None:
    outcome = Outcome()
    vcpus = VcpuSet([ScriptedVcpu()], RecordingBus(), RecordingBus(), outcome.on_exit)
    vcpus.start(paused=True)
    assert vcpus.wait_paused(TIMEOUT_SECONDS)
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert outcome.reports == []


def test_stop_before_start_is_harmless() -> None:
    vcpus = VcpuSet([ScriptedVcpu()], RecordingBus(), RecordingBus(), Outcome().on_exit)
    assert vcpus.stop(0.0)


def test_stop_gives_up_on_a_stuck_device() -> None:
    release = threading.Event()
    entered = threading.Event()

    class StuckBus(RecordingBus):
        def write(self, address: int, size: int, value: int) -> None:
            entered.set()
            assert release.wait(TIMEOUT_SECONDS)
            super().write(address, size, value)

    vcpu = ScriptedVcpu(steps=[io(OUT, 1, 0x80, b"\x01")])
    vcpus = VcpuSet([vcpu], StuckBus(), RecordingBus(), Outcome().on_exit)
    vcpus.start()
    assert entered.wait(TIMEOUT_SECONDS)
    assert not vcpus.stop(0.0)
    release.set()
    assert vcpus.stop(TIMEOUT_SECONDS)


def test_stop_from_the_exit_callback_does_not_wait_for_itself() -> None:
    done = threading.Event()

    def on_exit(_index: int, _reason: VmExitReason) -> None:
        vcpus.stop(TIMEOUT_SECONDS)
        done.set()

    vcpus = VcpuSet(
        [ScriptedVcpu(0, [SHUTDOWN]), ScriptedVcpu(1)], RecordingBus(), RecordingBus(), on_exit
    )
    vcpus.start()
    assert done.wait(TIMEOUT_SECONDS)
    assert vcpus.stop(TIMEOUT_SECONDS)


def test_pause_parks_every_vcpu_and_tells_the_guest() -> None:
    scripted = [ScriptedVcpu(index) for index in range(3)]
    vcpus = VcpuSet(scripted, RecordingBus(), RecordingBus(), Outcome().on_exit)
    vcpus.start()
    for _ in range(5):
        vcpus.pause()
        vcpus.pause()
        assert vcpus.wait_paused(TIMEOUT_SECONDS)
        vcpus.resume()
    assert not vcpus.wait_paused(TIMEOUT_SECONDS)
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert vcpus.thread_ids == {}


def test_pause_without_any_vcpu_in_time_is_said() -> None:
    entered, release = threading.Event(), threading.Event()

    def in_guest(_page: memoryview) -> int:
        entered.set()
        assert release.wait(TIMEOUT_SECONDS)
        return -errno.EINTR

    vcpus = VcpuSet(
        [ScriptedVcpu(steps=[in_guest])], RecordingBus(), RecordingBus(), Outcome().on_exit
    )
    vcpus.start()
    assert entered.wait(TIMEOUT_SECONDS)
    vcpus.pause()
    assert not vcpus.wait_paused(0.0)
    release.set()
    assert vcpus.wait_paused(TIMEOUT_SECONDS)
    assert vcpus.stop(TIMEOUT_SECONDS)


def test_a_vcpu_that_ended_does_not_hold_up_a_pause() -> None:
    outcome = Outcome()
    vcpus = VcpuSet(
        [ScriptedVcpu(0, [SHUTDOWN]), ScriptedVcpu(1)],
        RecordingBus(),
        RecordingBus(),
        outcome.on_exit,
    )
    vcpus.start()
    outcome.wait()
    vcpus.pause()
    assert vcpus.wait_paused(TIMEOUT_SECONDS)
    assert vcpus.stop(TIMEOUT_SECONDS)


# Confinement


def confined_set(
    confine: Callable[[int], None], cpus: int
) -> tuple[VcpuSet, list[ScriptedVcpu], Outcome]:
    vcpus, outcome = [ScriptedVcpu(index, [SHUTDOWN]) for index in range(cpus)], Outcome()
    found = VcpuSet(vcpus, RecordingBus(), RecordingBus(), outcome.on_exit)
    found.start(paused=True, confine=confine)
    return found, vcpus, outcome


def test_every_thread_is_confined_by_itself_before_the_guest_runs() -> None:
    confined: list[str] = []
    vcpus, _, outcome = confined_set(
        lambda index: confined.append(f"{index} {threading.current_thread().name}"), 3
    )
    vcpus.wait_confined()
    assert sorted(confined) == ["0 vcpu0", "1 vcpu1", "2 vcpu2"]
    assert outcome.reports == []
    vcpus.resume()
    outcome.wait()
    assert vcpus.stop(TIMEOUT_SECONDS)


def test_thread_that_cannot_be_confined_never_runs_and_is_told() -> None:
    refused = threading.Semaphore(1)

    def confine(_index: int) -> None:
        if refused.acquire(blocking=False):
            raise HostError("load", "the filter")

    vcpus, scripted, outcome = confined_set(confine, 2)
    with pytest.raises(HostError, match="load the filter"):
        vcpus.wait_confined()
    assert len(vcpus.thread_ids) == 1
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert outcome.reports == []
    assert all(vcpu.steps_left == 1 for vcpu in scripted)


def test_vcpu_that_resets_the_machine_waits_and_runs_again() -> None:
    vcpu, outcome = ScriptedVcpu(0, [SHUTDOWN]), Outcome()
    vcpus = VcpuSet([vcpu], RecordingBus(), RecordingBus(), outcome.on_exit)
    reasons: list[str] = []
    parking = threading.Event()

    def on_reset(reason: str) -> bool:
        reasons.append(reason)
        vcpus.park()
        parking.set()
        return len(reasons) == 1

    vcpus.on_reset = on_reset
    vcpus.start()
    assert parking.wait(TIMEOUT_SECONDS)
    assert vcpus.wait_paused(TIMEOUT_SECONDS)
    assert outcome.reports == []
    vcpu.append(SHUTDOWN)
    vcpus.resume()
    assert outcome.wait()[1].kind == VmExit.RESET
    assert reasons == ["vCPU 0: triple fault, which resets a PC"] * 2
    assert vcpus.stop(TIMEOUT_SECONDS)


def test_park_by_a_vcpu_keeps_it_out_of_the_guest() -> None:
    outcome = Outcome()
    bus = RecordingBus()
    vcpus: VcpuSet
    parking = threading.Event()

    def step(page: memoryview) -> int:
        vcpus.park()
        parking.set()
        return io(OUT, 1, 0x80, b"x")(page)

    vcpu = ScriptedVcpu(0, [step, io(OUT, 1, 0x80, b"y"), SHUTDOWN])
    vcpus = VcpuSet([vcpu], bus, RecordingBus(), outcome.on_exit)
    vcpus.start()
    assert parking.wait(TIMEOUT_SECONDS)
    assert vcpus.wait_paused(TIMEOUT_SECONDS)
    assert bus.accesses == [(0x80, 1, ord("x"))]
    vcpus.resume()
    outcome.wait()
    assert bus.accesses[-1] == (0x80, 1, ord("y"))
    assert vcpus.stop(TIMEOUT_SECONDS)
