# SPDX-License-Identifier: BSD-3-Clause
"""A processor that plays a script instead of a guest, and the buses and ears around it."""

from __future__ import annotations

import errno
import struct
import threading
from typing import TYPE_CHECKING

from crosvm_py.machine.vcpu import VcpuSet
from kvm._kvm import lib
from kvm.run_page import IO_FORMAT, MMIO_FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.machine.vcpu_exit import VmExitReason

DATA_OFFSET = 4096
TIMEOUT_SECONDS = 60.0
IN, OUT = lib.KVM_EXIT_IO_IN, lib.KVM_EXIT_IO_OUT


class ScriptedVcpu:
    """Play one step a KVM_RUN; a step fills the page and returns KVM_RUN's result."""

    def __init__(self, index: int = 0, steps: Sequence[Callable[[memoryview], int]] = ()) -> None:
        self.index = index
        self.page = memoryview(bytearray(2 * 4096))
        self._steps = list(steps)
        self.pauses = 0
        self.times_off = 0

    @property
    def steps_left(self) -> int:
        return len(self._steps)

    def append(self, step: Callable[[memoryview], int]) -> None:
        self._steps.append(step)

    def run(self) -> int:
        if self.page[lib.RUN_IMMEDIATE_EXIT]:
            return -errno.EINTR
        return self._steps.pop(0)(self.page) if self._steps else -errno.EINTR

    def set_immediate_exit(self, *, enabled: bool) -> None:
        self.page[lib.RUN_IMMEDIATE_EXIT] = enabled

    def mp_state(self) -> int:
        return 3

    def switch_off(self) -> None:
        self.times_off += 1

    def notify_paused(self) -> None:
        self.pauses += 1

    def instruction_pointer(self) -> int:
        return 0xFFFF_8000


class RecordingBus:
    """Answer reads from a list and remember every access."""

    def __init__(self, answers: Sequence[int] = ()) -> None:
        self.accesses: list[tuple[int, ...]] = []
        self._answers = list(answers)

    def read(self, address: int, size: int) -> int:
        self.accesses.append((address, size))
        return self._answers.pop(0)

    def write(self, address: int, size: int, value: int) -> None:
        self.accesses.append((address, size, value))


def io(direction: int, size: int, port: int, data: bytes) -> Callable[[memoryview], int]:
    def step(page: memoryview) -> int:
        struct.pack_into("<I", page, lib.RUN_EXIT_REASON, lib.KVM_EXIT_IO)
        count = len(data) // size
        IO_FORMAT.pack_into(page, lib.RUN_IO, direction, size, port, count, DATA_OFFSET)
        page[DATA_OFFSET : DATA_OFFSET + len(data)] = data
        return 0

    return step


def mmio(address: int, length: int, data: int, *, is_write: bool) -> Callable[[memoryview], int]:
    def step(page: memoryview) -> int:
        struct.pack_into("<I", page, lib.RUN_EXIT_REASON, lib.KVM_EXIT_MMIO)
        MMIO_FORMAT.pack_into(page, lib.RUN_MMIO, address, data, length, is_write)
        return 0

    return step


def exits(reason: int, payload: bytes = b"", result: int = 0) -> Callable[[memoryview], int]:
    def step(page: memoryview) -> int:
        struct.pack_into("<I", page, lib.RUN_EXIT_REASON, reason)
        page[lib.RUN_INTERNAL : lib.RUN_INTERNAL + len(payload)] = payload
        return result

    return step


SHUTDOWN = exits(lib.KVM_EXIT_SHUTDOWN)


class Outcome:
    """What ``on_exit`` was told."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, VmExitReason]] = []
        self._reported = threading.Event()

    def on_exit(self, index: int, reason: VmExitReason) -> None:
        self.reports.append((index, reason))
        self._reported.set()

    def wait(self) -> tuple[int, VmExitReason]:
        assert self._reported.wait(TIMEOUT_SECONDS)
        return self.reports[0]


def play(
    *steps: Callable[[memoryview], int],
    pio: RecordingBus | None = None,
    mmio_bus: RecordingBus | None = None,
    index: int = 0,
) -> tuple[VmExitReason, memoryview]:
    """Run one vCPU through ``steps`` until it ends the VM."""
    vcpu, outcome = ScriptedVcpu(index, [*steps, SHUTDOWN]), Outcome()
    vcpus = VcpuSet([vcpu], pio or RecordingBus(), mmio_bus or RecordingBus(), outcome.on_exit)
    vcpus.start()
    told, reason = outcome.wait()
    assert vcpus.stop(TIMEOUT_SECONDS)
    assert told == index
    assert len(outcome.reports) == 1
    return reason, vcpu.page
