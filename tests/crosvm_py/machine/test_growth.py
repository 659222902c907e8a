# SPDX-License-Identifier: BSD-3-Clause
"""Memory modules: what is refused, and that processes know of memory before the guest does."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.machine.growth import PLUG, UNPLUG, UNPLUG_ALL, Dimms, KvmBlocks, PluggedMemory
from crosvm_py.machine.hotplug import HotPlug
from devices.ged import GED_MEMORY, EventDevice
from devices.memory_hotplug import Dimm, MemoryHotplugController
from sys_util.errors import ConfigError, HostError
from sys_util.guest_memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.pci.hotplug import PciHotplugController
    from kvm.vm import Vm

MIB = 1 << 20
STEP = 128 * MIB
BOOT = 64 * MIB
HOT = 4 << 30


class FakeKvm:
    """Notes slots of memory, and which blocks all processes know at that time."""

    def __init__(self) -> None:
        self.memory: GuestMemory
        self.slots: dict[int, tuple[int, int]] = {}
        self.known: list[list[tuple[int, int]]] = []
        self.refuses = False

    def add_memory(self, slot: int, gpa: int, buffer: memoryview) -> None:
        if self.refuses:
            raise HostError("KVM_SET_USER_MEMORY_REGION", f"slot {slot}") from OSError(errno.EINVAL)
        assert slot not in self.slots
        self.slots[slot] = (gpa, buffer.nbytes)
        self.known.append(self.memory.hot_areas[0].runs())

    def remove_memory(self, slot: int) -> None:
        del self.slots[slot]


class Line:
    def __init__(self) -> None:
        self.edges = 0

    def set_level(self, asserted: bool) -> None:
        self.edges += asserted


class Rig:
    def __init__(self, hot_bytes: int = 12 * STEP) -> None:
        self.memory = GuestMemory.create([(0, BOOT)], hot_ranges=[(HOT, hot_bytes, STEP)])
        self.kvm = FakeKvm()
        self.kvm.memory = self.memory
        self.line = Line()
        self.events = EventDevice(self.line)
        self.registers = MemoryHotplugController()
        nothing = cast("PciHotplugController", None)
        hotplug = HotPlug(threading.RLock(), nothing, self.events)
        (self.area,) = self.memory.hot_areas
        vm = cast("Vm", self.kvm)
        self.dimms = Dimms(vm, self.area, BOOT, self.registers, hotplug)
        self.blocks = KvmBlocks(vm, self.area)

    def grow(self, size_bytes: int) -> None:
        self.dimms.check(size_bytes)
        self.dimms.resize(size_bytes)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.memory.close()


def test_module_is_known_to_processes_before_kvm_and_to_kvm_before_the_guest(rig: Rig) -> None:
    rig.grow(BOOT + 2 * STEP)
    assert rig.kvm.known == [[(0, 2)]]
    assert rig.kvm.slots == {16: (HOT, 2 * STEP)}
    assert list(rig.registers.dimms) == [Dimm(HOT, 2 * STEP)]
    assert (rig.line.edges, rig.events.read(0, 1)) == (1, GED_MEMORY)
    rig.grow(BOOT + 3 * STEP)
    assert list(rig.registers.dimms)[1:] == [Dimm(HOT + 2 * STEP, STEP)]
    assert rig.dimms.added_bytes == 3 * STEP


@pytest.mark.parametrize("size_bytes", [BOOT + 2 * STEP, BOOT + STEP, BOOT, 0])
def test_same_size_or_a_smaller_one_changes_nothing(rig: Rig, size_bytes: int) -> None:
    rig.grow(BOOT + 2 * STEP)
    rig.grow(size_bytes)
    assert rig.dimms.added_bytes == 2 * STEP
    assert rig.line.edges == 1


@pytest.mark.parametrize(
    ("size_bytes", "reason"),
    [
        pytest.param(BOOT + STEP + MIB, "multiples of 128 MiB", id="part-of-a-step"),
        pytest.param(BOOT + 1, "1 bytes more than now", id="a-byte"),
        pytest.param(BOOT + 13 * STEP, "at most 1600 MiB", id="too-much"),
        pytest.param(1 << 60, "at most 1600 MiB", id="far-too-much"),
    ],
)
def test_impossible_size_is_refused(rig: Rig, size_bytes: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        rig.grow(size_bytes)
    assert rig.area.runs() == []


def test_ninth_module_is_refused_a_hundred_times_and_leaves_nothing(rig: Rig) -> None:
    for number in range(1, 9):
        rig.grow(BOOT + number * STEP)
    for _ in range(100):
        with pytest.raises(ConfigError, match="all 8 slots for modules are in use"):
            rig.grow(BOOT + 9 * STEP)
    assert len(rig.kvm.slots) == 8
    assert rig.area.runs() == [(0, 8)]


def test_module_that_kvm_refuses_is_no_address(rig: Rig) -> None:
    rig.kvm.refuses = True
    for _ in range(100):
        with pytest.raises(HostError):
            rig.grow(BOOT + STEP)
    assert rig.area.runs() == []
    assert rig.dimms.added_bytes == rig.line.edges == 0
    rig.kvm.refuses = False
    rig.grow(BOOT + STEP)


@pytest.mark.parametrize(
    ("wanted", "dimms"),
    [
        pytest.param(
            BOOT + 5 * STEP, [Dimm(HOT, 2 * STEP), Dimm(HOT + 2 * STEP, 3 * STEP)], id="as-is"
        ),
        pytest.param(
            BOOT + 4 * STEP, [Dimm(HOT, 2 * STEP), Dimm(HOT + 2 * STEP, 2 * STEP)], id="less"
        ),
        pytest.param(BOOT + 2 * STEP, [Dimm(HOT, 2 * STEP)], id="without-the-last"),
        pytest.param(BOOT + STEP, [Dimm(HOT, STEP)], id="less-of-the-first"),
        pytest.param(BOOT + MIB, [], id="part-of-a-step"),
        pytest.param(0, [], id="nothing"),
    ],
)
def test_smaller_size_is_that_of_the_guest_after_a_reset(
    rig: Rig, wanted: int, dimms: list[Dimm]
) -> None:
    rig.grow(BOOT + 2 * STEP)
    rig.grow(BOOT + 5 * STEP)
    rig.grow(wanted)
    rig.dimms.reset()
    assert list(rig.registers.dimms) == dimms
    assert sorted(rig.kvm.slots.values()) == [(dimm.gpa, dimm.size_bytes) for dimm in dimms]
    assert rig.registers.read(20, 1) in (0, 1)  # none is new
    rig.grow(BOOT + 6 * STEP)
    assert rig.dimms.added_bytes == 6 * STEP


def test_record_of_the_vmm_is_its_own(rig: Rig) -> None:
    rig.blocks.add(3, 1)
    rig.area.blocks[:] = b"\1" * 12  # as a device process could do
    assert rig.blocks.there == bytes(3) + b"\1" + bytes(8)
    rig.blocks.remove(3, 1)
    assert rig.blocks.there == bytes(12)
    assert rig.kvm.slots == {}


# virtio-mem


class MemRig:
    BLOCK = 2 * MIB

    def __init__(self, requested: int) -> None:
        self.memory = GuestMemory.create(
            [(0, BOOT)], hot_ranges=[(HOT, 8 * self.BLOCK, self.BLOCK)]
        )
        self.kvm = FakeKvm()
        self.kvm.memory = self.memory
        (self.area,) = self.memory.hot_areas
        self.plugged = PluggedMemory(cast("Vm", self.kvm), self.area, BOOT, requested)
        self.told: list[int] = []
        self.plugged.tell = self.told.append


@pytest.fixture
def mem() -> Iterator[MemRig]:
    mem = MemRig(6 * MemRig.BLOCK)
    yield mem
    mem.memory.close()


def test_plugged_blocks_are_slots_of_kvm_that_processes_know_before(mem: MemRig) -> None:
    assert mem.plugged.change(PLUG, 2, 2)
    assert mem.kvm.known == [[(2, 3)], [(2, 4)]]
    assert mem.kvm.slots == {
        18: (HOT + 2 * mem.BLOCK, mem.BLOCK),
        19: (HOT + 3 * mem.BLOCK, mem.BLOCK),
    }
    assert mem.plugged.added_bytes == 2 * mem.BLOCK
    assert mem.plugged.change(UNPLUG, 2, 1)
    assert mem.area.runs() == [(3, 4)]
    assert set(mem.kvm.slots) == {19}


@pytest.mark.parametrize(
    ("kind", "first", "count"),
    [
        pytest.param(PLUG, 0, 1, id="plugged-already"),
        pytest.param(PLUG, 1, 2, id="plugged-in-part"),
        pytest.param(UNPLUG, 2, 1, id="not-plugged"),
        pytest.param(UNPLUG, 1, 2, id="not-plugged-in-part"),
        pytest.param(PLUG, 2, 5, id="more-than-requested"),
        pytest.param(PLUG, 7, 2, id="over-the-end"),
        pytest.param(PLUG, 1 << 31, 1, id="far-behind-the-end"),
        pytest.param(3, 0, 1, id="state"),
        pytest.param(0xFFFF, 0, 1, id="unknown"),
        pytest.param(UNPLUG_ALL, 0, 9, id="all-and-more"),
    ],
)
def test_request_of_a_device_that_was_taken_over_changes_nothing(
    mem: MemRig, kind: int, first: int, count: int
) -> None:
    mem.plugged.change(PLUG, 0, 2)
    mem.area.blocks[:] = b"\1\1" + bytes(6)
    for _ in range(100):
        assert not mem.plugged.change(kind, first, count)
    assert set(mem.kvm.slots) == {16, 17}
    assert mem.plugged.added_bytes == 2 * mem.BLOCK


def test_plug_that_kvm_refuses_in_the_middle_is_undone(mem: MemRig, lines: list[str]) -> None:
    add, count = mem.kvm.add_memory, 0

    def refuse_third(slot: int, gpa: int, buffer: memoryview) -> None:
        nonlocal count
        count += 1
        mem.kvm.refuses = count == 3
        add(slot, gpa, buffer)

    mem.kvm.add_memory = refuse_third  # type: ignore[method-assign]  # a double
    assert not mem.plugged.change(PLUG, 0, 4)
    assert mem.kvm.slots == {}
    assert mem.area.runs() == []
    assert len(lines) == 1


def test_reset_takes_all_and_keeps_the_wish(mem: MemRig) -> None:
    mem.plugged.change(PLUG, 0, 2)
    mem.plugged.reset()
    assert mem.plugged.added_bytes == 0
    assert mem.plugged.requested_bytes == 6 * mem.BLOCK


@pytest.mark.parametrize(
    ("size_bytes", "reason"),
    [
        (BOOT - MIB, "from 64 to 80 MiB"),
        (BOOT + 18 * MIB, "from 64 to 80 MiB"),
        (BOOT + MIB, "multiples of 2 MiB"),
    ],
)
def test_wish_that_cannot_be_is_refused(mem: MemRig, size_bytes: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        mem.plugged.check(size_bytes)


def test_wish_is_told_and_not_waited_for(mem: MemRig) -> None:
    mem.plugged.check(BOOT + 4 * MIB)
    mem.plugged.resize(BOOT + 4 * MIB)
    assert mem.told == [4 * MIB]
    assert mem.plugged.added_bytes == 0
    assert not mem.plugged.change(PLUG, 0, 3)
    assert mem.plugged.change(PLUG, 0, 2)
