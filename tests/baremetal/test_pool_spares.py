# SPDX-License-Identifier: BSD-3-Clause
"""A waiting monitor has a warden with spare devices; a run that may use them adopts them."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from crosvm_py.pool.waiting_warden import SPARE_DEVICES
from tests.baremetal.pool import RunningPool
from tests.baremetal.vmm import FORGE, Vmm, eventually, has_ended, named_children
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow, pytest.mark.root]

SPARE: Final = "crosvm-spare"
# What the kernel tells of a process's rights (proc(5)).
RIGHTS: Final = (
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"),
    *("Seccomp_filters", "Groups"),
)


class Waiting(NamedTuple):
    """What waits in a monitor."""

    monitor: int
    warden: int
    spares: list[int]


def waiting_in(pool: RunningPool) -> Waiting:
    assert pool.is_full()
    (monitor,) = pool.waiting()
    ((name, warden),) = named_children(monitor)
    assert name == "crosvm-warden"
    # A process that was just made has the name of the warden.
    assert eventually(lambda: {name for name, _ in named_children(warden)} == {SPARE, FORGE})
    names = named_children(warden)
    return Waiting(monitor, warden, [pid for name, pid in names if name == SPARE])


def rights_of(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    named = [status[name].strip() for name in RIGHTS]
    return [
        *named,
        Path(f"/proc/{pid}/limits").read_text(),
        Path(f"/proc/{pid}/mountinfo").read_text(),
    ]


def without_numbers(rights: list[str]) -> list[str]:
    """Leave out what differs between any two processes: the numbers of mounts, and ids."""
    *others, mounts = rights
    words = [line.partition(",uid=")[0].split() for line in mounts.splitlines()]
    return [*others, *(" ".join(line[3:]) for line in words)]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spares")


@pytest.fixture
def pool(guests: Path) -> Iterator[RunningPool]:
    with RunningPool(guests / "pool.sock", 1) as running:
        yield running


def spin(guests: Path, *options: str | Path) -> list[str | Path]:
    return [*options, "-m", "16", build_guest("spin", guests)]


def devices_of(warden: int) -> dict[str, int]:
    return {name: pid for name, pid in named_children(warden) if name != FORGE}


def test_run_adopts_the_warden_and_devices_that_waited(guests: Path, pool: RunningPool) -> None:
    waiting = waiting_in(pool)
    assert len(waiting.spares) == SPARE_DEVICES
    with Vmm(spin(guests, "--pool", pool.path)) as vmm, Vmm(spin(guests)) as usual:
        for each in (vmm, usual):
            each.wait_for(b"spin")
        ((_, warden),) = [
            each for each in named_children(waiting.monitor) if each[0] == "crosvm-warden"
        ]
        assert warden == waiting.warden
        # The spare that no device has become is gone.
        assert eventually(lambda: list(devices_of(warden)) == ["rng"])
        rng, other = devices_of(warden)["rng"], usual.processes()
        assert rng in waiting.spares
        assert without_numbers(rights_of(rng)) == without_numbers(rights_of(other.devices["rng"]))


def replaced(warden: int) -> int:
    """Kill the source of randomness, and return the process that a mould makes instead."""
    before = devices_of(warden)["rng"]
    os.kill(before, signal.SIGKILL)
    assert eventually(lambda: devices_of(warden).get("rng", before) != before)
    return devices_of(warden)["rng"]


def test_replacement_in_an_adopted_warden_has_the_rights_of_any_other(
    guests: Path, pool: RunningPool
) -> None:
    waiting = waiting_in(pool)
    with Vmm(spin(guests, "--pool", pool.path)) as vmm, Vmm(spin(guests)) as usual:
        for each in (vmm, usual):
            each.wait_for(b"spin")
        assert eventually(lambda: list(devices_of(waiting.warden)) == ["rng"])
        adopted, plain = replaced(waiting.warden), replaced(usual.processes().warden)
        # They have their names before they are in their jails.
        assert eventually(lambda: rights_of(adopted)[1] == rights_of(plain)[1] == "0" * 16)
        assert eventually(
            lambda: without_numbers(rights_of(adopted)) == without_numbers(rights_of(plain))
        )
        for fd in (0, 1, 2):
            assert os.readlink(f"/proc/{adopted}/fd/{fd}") == "/dev/null"


def test_caller_with_other_limits_gets_processes_of_its_own(
    guests: Path, pool: RunningPool
) -> None:
    waiting = waiting_in(pool)
    pidfds = [os.pidfd_open(pid) for pid in (waiting.warden, *waiting.spares)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard - 1))

    with Vmm(spin(guests, "--pool", pool.path), before=lower) as vmm:
        vmm.wait_for(b"spin")
        assert all(map(has_ended, pidfds))
        ((name, warden),) = named_children(waiting.monitor)
        assert (name, warden) != ("crosvm-warden", waiting.warden)
        assert resource.prlimit(warden, resource.RLIMIT_NOFILE)[1] == hard - 1
    for pidfd in pidfds:
        os.close(pidfd)


def test_spares_that_have_ended_are_made_anew(guests: Path, pool: RunningPool) -> None:
    waiting = waiting_in(pool)
    for pid in waiting.spares:
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert has_ended(pidfd)
        os.close(pidfd)
    with Vmm(spin(guests, "--pool", pool.path)) as vmm:
        vmm.wait_for(b"spin")
        assert devices_of(waiting.warden).keys() == {"rng"}


def test_warden_that_has_ended_is_forked_anew(guests: Path, pool: RunningPool) -> None:
    waiting = waiting_in(pool)
    pidfd = os.pidfd_open(waiting.warden)
    os.kill(waiting.warden, signal.SIGKILL)
    assert has_ended(pidfd)
    os.close(pidfd)
    with Vmm(spin(guests, "--pool", pool.path)) as vmm:
        vmm.wait_for(b"spin")
        ((_, warden),) = named_children(waiting.monitor)
        assert devices_of(warden).keys() == {"rng"}


def test_spares_end_with_their_monitor(pool: RunningPool) -> None:
    waiting = waiting_in(pool)
    pidfds = [os.pidfd_open(pid) for pid in (waiting.warden, *waiting.spares)]
    os.kill(waiting.monitor, signal.SIGKILL)
    assert all(map(has_ended, pidfds))
    for pidfd in pidfds:
        os.close(pidfd)


def test_adopted_warden_removes_the_socket_of_a_vmm_that_is_killed(
    guests: Path, pool: RunningPool
) -> None:
    waiting = waiting_in(pool)
    socket = guests / "control.sock"
    with Vmm(spin(guests, "--pool", pool.path, "-s", socket)) as vmm:
        vmm.wait_for(b"spin")
        assert socket.exists()
        assert waiting.warden in dict(named_children(waiting.monitor)).values()
        os.kill(waiting.monitor, signal.SIGKILL)
        assert eventually(lambda: not socket.exists())
