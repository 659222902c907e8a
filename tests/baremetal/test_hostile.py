# SPDX-License-Identifier: BSD-3-Clause
"""A guest that attacks its devices, on this machine's own KVM: who is hurt, and for how long.

The guest (tests/guests/baremetal/hostile.c) tries the other devices after each attack, and the
attacked one after a reset. From outside we see that no process died, grew or stayed busy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from crosvm_py.exit_status import VmExit
from sys_util.tap import open_queue
from tests.baremetal.vmm import Processes, Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

SECTOR_BYTES = 512
SECTORS = 64
MEMORY_KIB = 16 * 1024
# What a process may ever have had beyond guest memory, on top of what it had at the start.
MAX_GROWTH_KIB = 24 * 1024
# Each part of the vmm and of a device says at most ten lines in five seconds.
MAX_LOG_LINES = 400
ROUND_TRIPS = 20
QCOW2 = b"QFI\xfb\0\0\0\x03"

ATTACKS = {
    "a": "rings moved, resized and enabled again while they are served",
    "b": "available indices and heads that jump",
    "c": "malformed chains of every sort",
    "d": "rings as the buffers of requests",
    "e": "status out of order, features that nobody offered or after the fact",
    "f": "reset, queue reset and bus mastering off with requests in flight",
    "g": "a storm of kicks, of queues that are not there, too",
    "h": "configuration space at every width and offset",
    "i": "the BAR at every width and offset",
    "j": "MSI-X vectors, table and masks",
    "k": "a storm of interrupts that nobody takes",
    "l": "all 64K ports, random widths and values",
    "x": "string instructions on ports, thousands of accesses each",
    "m": "addresses from the end of memory to 4 GiB",
    "n": "buffers that overlap to more than there is memory",
    "o": "a balloon of pages that are its own ring, and another's",
    "y": "every device driven at random",
    "p": "a flood of console output for a reader who does not read",
    "r": "vsock packets that lie about length, addresses and credit",
    "s": "a second processor that changes requests between check and use",
}


class Cost(NamedTuple):
    """What a process took: memory at its peak, time on a processor so far, open descriptors."""

    peak_kib: int
    run_ns: int
    fds: int


def cost(pid: int) -> Cost:
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    run_ns = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
    return Cost(int(peak), int(run_ns), len(os.listdir(f"/proc/{pid}/fd")))


class Hostile:
    """A VM with a hostile guest, and what its processes cost when it began."""

    def __init__(self, guest: Path, folder: Path, *words: str) -> None:
        self.disks = [folder / "a.img", folder / "b.img"]
        for number, disk in enumerate(self.disks):
            first = 0x10 * (number + 1)
            disk.write_bytes(b"".join(bytes([first + at]) * SECTOR_BYTES for at in range(SECTORS)))
        self.guest = guest
        self.reader = _fifo_that_is_not_read(folder / "console")
        self.vmm = self.start(folder, *words)
        self.processes: Processes = self.vmm.processes()
        assert self.settles()  # the guest is ready before the devices know of it
        self.costs = {pid: cost(pid) for pid in self.processes.all()}

    def start(self, folder: Path, *words: str) -> Vmm:
        vmm = Vmm(
            [
                *("-m", "16", "-c", "2", "--balloon", "0", *words),
                *("--rwdisk", self.disks[0], "--rwdisk", self.disks[1]),
                *("--serial", f"hardware=virtio-console,type=file,path={folder}/console,num=1"),
                *("--vsock", f"cid=3,socket={folder}/v", self.guest),
            ]
        )
        vmm.wait_for(b"ready\n")
        return vmm

    def attack(self, key: str) -> bytes:
        """Let the guest carry out one attack; return what it said about it."""
        before = len(self.vmm.output)
        self.vmm.type(key.encode())
        self.vmm.wait_for(b"ed %s\n" % key.encode())
        return self.vmm.output[before:].replace(b"\r", b"")

    def settles(self) -> bool:
        """Return whether all of them come to rest: no processor time while the guest answers."""
        return eventually(self._is_quiet)

    def _is_quiet(self) -> bool:
        idle = [self.processes.warden, *self.processes.devices.values()]
        before = [cost(pid).run_ns for pid in idle]
        for _ in range(ROUND_TRIPS):
            self.vmm.output = b""
            self.vmm.type(b".")
            self.vmm.wait_for(b".")
        return before == [cost(pid).run_ns for pid in idle]

    def growth_kib(self) -> int:
        """Return by how much the process that grew most has grown."""
        return max(cost(pid).peak_kib - before.peak_kib for pid, before in self.costs.items())

    def leaks_nothing(self) -> bool:
        """Return whether every process comes to have as many descriptors as at the start."""
        return eventually(
            lambda: all(cost(pid).fds == before.fds for pid, before in self.costs.items())
        )

    def close(self) -> None:
        self.vmm.__exit__()
        os.close(self.reader)


def may_make_taps() -> bool:
    """Return whether a TAP can be made here; it is gone at once."""
    try:
        os.close(open_queue("", multi_queue=False)[0])
    except OSError:
        return False
    return True


def _fifo_that_is_not_read(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("hostile", tmp_path_factory.mktemp("hostile"))


class Lab:
    """One VM for all attacks, as an attacker has; a new one after a failure."""

    def __init__(self, guest: Path, factory: pytest.TempPathFactory) -> None:
        self._guest = guest
        self._factory = factory
        self._vm: Hostile | None = None
        self.is_sound = True

    def vm(self) -> Hostile:
        if not self.is_sound:
            self.close()
        if self._vm is None:
            self._vm = Hostile(self._guest, self._factory.mktemp("vm"))
        self.is_sound = False  # until the test has passed
        return self._vm

    def close(self) -> None:
        if self._vm is not None:
            self._vm.close()
        self._vm = None


@pytest.fixture(scope="module")
def lab(guest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(guest, tmp_path_factory)
    yield lab
    lab.close()


@pytest.mark.parametrize("key", ATTACKS, ids=list(ATTACKS.values()))
def test_attack_hurts_nobody_else_and_ends_with_a_reset(lab: Lab, key: str) -> None:
    vm = lab.vm()
    assert vm.attack(key) == b"passed %s\n" % key.encode()
    assert vm.vmm.processes() == vm.processes
    assert vm.growth_kib() <= MEMORY_KIB + MAX_GROWTH_KIB
    assert vm.settles()
    assert vm.leaks_nothing()
    lab.is_sound = True


def test_guest_that_did_all_that_ends_in_order(lab: Lab) -> None:
    vm = lab.vm()
    vm.vmm.type(b"q")
    assert vm.vmm.wait() == VmExit.RESET
    assert vm.vmm.nothing_is_left()
    log = vm.vmm.log()
    assert "Traceback" not in log
    assert len(log.splitlines()) <= MAX_LOG_LINES


@pytest.mark.root
@pytest.mark.skipif(not may_make_taps(), reason="no TAP without CAP_NET_ADMIN and /dev/net/tun")
def test_frames_with_absurd_offsets_and_random_buffers_hurt_nobody(
    guest: Path, tmp_path: Path
) -> None:
    vm = Hostile(guest, tmp_path, "--net", "host-ip=192.0.2.1,netmask=255.255.255.252")
    assert vm.attack("w") == b"passed w\n"
    assert vm.vmm.processes() == vm.processes
    assert vm.growth_kib() <= MEMORY_KIB + MAX_GROWTH_KIB
    assert vm.settles()
    assert vm.leaks_nothing()
    vm.close()


def test_two_processors_that_never_stop_do_not_keep_the_user_out(
    guest: Path, tmp_path: Path
) -> None:
    """Every exit takes the lock of the devices; whoever else wants it must get it, too."""
    control = f"{tmp_path}/vm.sock"
    vm = Hostile(guest, tmp_path, "-s", control)
    vm.vmm.type(b"v")
    vm.vmm.wait_for(b"hammering\n")
    for verb in ("devices", "suspend", "resume", "balloon_stats", "stop"):
        done = crosvm(verb, control)
        assert (done.returncode, done.stderr) == (0, "")
    assert vm.vmm.wait() == VmExit.STOPPED
    assert vm.vmm.nothing_is_left()
    vm.close()


def test_image_that_looks_like_another_format_stays_raw(guest: Path, tmp_path: Path) -> None:
    """CVE-2026-27211, CVE-2008-2004: what a guest writes to its disk decides nothing."""
    vm = Hostile(guest, tmp_path)
    assert vm.attack("t") == b"passed t\n"
    vm.vmm.type(b"q")
    assert vm.vmm.wait() == VmExit.RESET
    assert vm.disks[0].read_bytes()[: len(QCOW2)] == QCOW2
    vm.vmm.__exit__()
    vm.vmm = vm.start(tmp_path)
    assert vm.attack("u") == b"capacity %08x sector %s\npassed u\n" % (
        SECTORS,
        QCOW2.hex().encode(),
    )
    assert vm.disks[0].stat().st_size == SECTORS * SECTOR_BYTES
    vm.close()
