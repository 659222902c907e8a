# SPDX-License-Identifier: BSD-3-Clause
"""A guest's clocks that stand still, with a VM that only has clocks."""

from __future__ import annotations

import pytest

from crosvm_py.machine.x86_64.clocks import MSR_IA32_TSC, TSC_SECONDS, GuestClocks


class FakeVm:
    """Its clocks, the host's and the guest's, go on with ``pass_time``."""

    def __init__(self, vcpus: int = 2) -> None:
        self.now = 100.0
        self.kvmclock = 5_000_000_000
        self.tscs: list[int | None] = [7_000_000 + index for index in range(vcpus)]
        self.written: list[tuple[int, int]] = []
        self.takes_tsc = True
        self.drops_ticks = False

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.kvmclock += round(seconds * 1e9)
        self.tscs = [None if tsc is None else tsc + round(seconds * 1e6) for tsc in self.tscs]

    def clock_ns(self) -> int:
        return self.kvmclock

    def set_clock_ns(self, clock_ns: int) -> None:
        self.kvmclock = clock_ns

    def drop_missed_pit_ticks(self) -> None:
        self.drops_ticks = True


class FakeVcpu:
    def __init__(self, vm: FakeVm, index: int) -> None:
        self._vm = vm
        self._index = index

    def msr(self, index: int) -> int | None:
        assert index == MSR_IA32_TSC
        return self._vm.tscs[self._index]

    def set_msr(self, index: int, value: int) -> bool:
        assert index == MSR_IA32_TSC
        if self._vm.takes_tsc:
            self._vm.tscs[self._index] = value
            self._vm.written.append((self._index, value))
        return self._vm.takes_tsc


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def clocks(vm: FakeVm) -> GuestClocks:
    return GuestClocks(vm, [FakeVcpu(vm, 0), FakeVcpu(vm, 1)], lambda: vm.now)


def test_no_time_passes_for_the_guest(vm: FakeVm, clocks: GuestClocks) -> None:
    clocks.hold()
    assert vm.drops_ticks
    vm.pass_time(3600)
    clocks.go_on()
    assert vm.kvmclock == 5_000_000_000
    assert vm.tscs == [7_000_000, 7_000_000]


def test_short_pause_leaves_the_counter_alone(vm: FakeVm, clocks: GuestClocks) -> None:
    clocks.hold()
    vm.pass_time(TSC_SECONDS - 0.1)
    clocks.go_on()
    assert vm.kvmclock == 5_000_000_000
    assert vm.written == []


def test_every_hold_counts_anew(vm: FakeVm, clocks: GuestClocks) -> None:
    for _ in range(2):
        clocks.hold()
        vm.pass_time(10)
        clocks.go_on()
        vm.pass_time(1)
    assert vm.kvmclock == 7_000_000_000
    assert vm.tscs == [9_000_000, 9_000_000]


def test_host_without_the_register_holds_kvmclock(vm: FakeVm, clocks: GuestClocks) -> None:
    vm.tscs = [None, None]
    clocks.hold()
    vm.pass_time(10)
    clocks.go_on()
    assert (vm.kvmclock, vm.written) == (5_000_000_000, [])


def test_host_that_refuses_the_register_is_told_once(
    vm: FakeVm, clocks: GuestClocks, lines: list[str]
) -> None:
    vm.takes_tsc = False
    clocks.hold()
    vm.pass_time(10)
    clocks.go_on()
    assert lines == ["KVM does not let the time stamp counter stand still"]
    assert vm.kvmclock == 5_000_000_000
