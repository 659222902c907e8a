# SPDX-License-Identifier: BSD-3-Clause
"""Small guests on the real KVM: entry states, exits, pausing, and ends that nobody planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.machine import PATIENCE_SECONDS, BrokenDevice, Machine
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.kvm

COUNTER_GPA = 0x100000
UNUSED_PORT = 0x700
HELLO = b"hello from the guest\n"


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baremetal")


@pytest.fixture
def make_machine(guests: Path) -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def make(name: str, *, pvh: bool = False, cpus: int = 1) -> Machine:
        machine = Machine(build_guest(name, guests, pvh=pvh), cpus)
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        machine.close()


@pytest.mark.parametrize("pvh", [False, True], ids=["linux64", "pvh"])
def test_hello_prints_and_resets(make_machine: Callable[..., Machine], pvh: bool) -> None:
    machine = make_machine("hello", pvh=pvh)
    assert machine.run().kind is VmExit.RESET
    assert machine.uart.output == HELLO
    assert machine.reasons[0].text == "reset port"


def test_triple_fault_ends_the_vm_as_a_reset(make_machine: Callable[..., Machine]) -> None:
    machine = make_machine("triple_fault")
    reason = machine.run()
    assert machine.uart.output == b"about to fault\n"
    assert reason == (VmExit.RESET, "vCPU 0: triple fault, which resets a PC")


@pytest.mark.slow
def test_unmapped_ports_and_addresses_read_as_all_ones(
    make_machine: Callable[..., Machine],
) -> None:
    machine = make_machine("unmapped")
    assert machine.run().kind is VmExit.RESET
    assert machine.uart.output == b"unmapped: ok\n"


def test_device_bug_ends_the_vm_as_a_crash(make_machine: Callable[..., Machine]) -> None:
    machine = make_machine("unmapped")
    machine.pio.insert(UNUSED_PORT, 1, BrokenDevice())
    reason = machine.run()
    assert reason == (VmExit.CRASH, "vCPU 0: ZeroDivisionError: a bug in a device")


def read_counter(machine: Machine) -> int:
    return int.from_bytes(machine.memory.read(COUNTER_GPA, 8), "little")


def test_pause_holds_the_guest_and_resume_lets_it_go_on(
    make_machine: Callable[..., Machine],
) -> None:
    machine = make_machine("spin", cpus=2)
    machine.threads.start()
    assert machine.uart.wait_for(b"spinning")
    for _ in range(20):
        machine.threads.pause()
        assert machine.threads.wait_paused(PATIENCE_SECONDS)
        held = read_counter(machine)
        rip = machine.vcpus[0].regs().rip
        assert read_counter(machine) == held
        assert machine.vcpus[0].regs().rip == rip
        machine.threads.resume()
        while read_counter(machine) == held:
            pass
    assert machine.threads.stop(PATIENCE_SECONDS)
    assert machine.reasons == []


def test_pause_in_a_port_access_loses_and_repeats_nothing(
    make_machine: Callable[..., Machine],
) -> None:
    machine = make_machine("hello")
    machine.uart.on_write = machine.threads.pause
    machine.threads.start()
    for written in range(1, len(HELLO) + 1):
        assert machine.uart.wait_for(HELLO[:written])
        assert machine.threads.wait_paused(PATIENCE_SECONDS)
        assert machine.uart.output == HELLO[:written]
        machine.threads.resume()
    assert machine.wait().kind is VmExit.RESET


def test_start_paused_runs_nothing(make_machine: Callable[..., Machine]) -> None:
    machine = make_machine("hello")
    machine.threads.start(paused=True)
    assert machine.threads.wait_paused(PATIENCE_SECONDS)
    assert machine.threads.stop(PATIENCE_SECONDS)
    assert machine.uart.output == b""
    assert machine.threads.thread_ids == {}


def test_interrupts_wake_a_halted_processor(make_machine: Callable[..., Machine]) -> None:
    machine = make_machine("self_ipi")
    assert machine.run().kind is VmExit.RESET
    assert machine.uart.output == b"interrupts: 3\n"
