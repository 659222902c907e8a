# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's threads and the warden of a running VM: confined, each for itself, and for good."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from jail.plan import VMM_OPEN_FILES
from sys_util import landlock
from tests.baremetal.vmm import ROOT, Vmm, run_module
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("doors"))


def attack(
    place: str, attempt: str, guest: Path, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    options = ("--extended-status", "run", "-m", "16", *options)
    return run_module("tests.baremetal.break_out", place, attempt, *options, guest)


@pytest.mark.parametrize(
    ("place", "attempt", "words"),
    [
        ("vcpu", "exec", r"vmm: killed by seccomp: execve \(59\), policy vcpu"),
        ("vcpu", "fork", r"vmm: killed by seccomp: clone \(56\), policy vcpu"),
        ("vcpu", "socket", r"vmm: killed by seccomp: socket \(41\), policy vcpu"),
        ("vcpu", "executable", r"vmm: killed by seccomp: mmap \(9\), policy vcpu"),
        ("vcpu", "KVM_CREATE_VM", r"vmm: killed by seccomp: ioctl \(16\), policy vcpu"),
        ("vcpu", "tgkill", r"vmm: killed by seccomp: tgkill \(234\), policy vcpu"),
        ("vcpu", "tgkill-high", r"vmm: killed by seccomp: tgkill \(234\), policy vcpu"),
        ("loop", "tgkill", r"vmm: killed by seccomp: tgkill \(234\), policy vmm"),
        ("loop", "exec", r"vmm: killed by seccomp: execve \(59\), policy vmm"),
        ("loop", "KVM_RUN", r"vmm: killed by seccomp: ioctl \(16\), policy vmm"),
        ("warden", "exec", r"warden \(pid \d+\): killed by seccomp: execve \(59\), policy warden"),
        (
            "warden",
            "tgkill",
            r"warden \(pid \d+\): killed by seccomp: tgkill \(234\), policy warden",
        ),
        ("warden", "fork", r"warden \(pid \d+\): killed by seccomp: clone \(56\), policy warden"),
        ("sealed", "jail", r"warden .*killed by seccomp: clone \(56\), policy warden_sealed"),
        ("sealed", "clone3", r"warden .*killed by seccomp: clone3 \(435\), policy warden_sealed"),
        ("sealed", "mount", r"warden .*killed by seccomp: mount \(165\), policy warden_sealed"),
        ("sealed", "filter", r"warden .*killed by seccomp: seccomp \(317\), policy warden_sealed"),
    ],
)
def test_attempt_ends_the_vm_as_a_crash(guest: Path, place: str, attempt: str, words: str) -> None:
    done = attack(place, attempt, guest)
    assert done.returncode == (VmExit.ERROR if place == "warden" else VmExit.CRASH)
    assert re.search(words, done.stderr), done.stderr


@pytest.mark.parametrize("place", ["vcpu", "loop"])
def test_file_is_not_there(guest: Path, place: str) -> None:
    assert "break-out: ENOENT" in attack(place, "open", guest).stderr


@pytest.mark.skipif(not landlock.abi_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("place", ["vcpu", "loop"])
def test_file_is_out_of_reach_whatever_the_filter_says(
    guest: Path, place: str, tmp_path: Path
) -> None:
    for source in (ROOT / "seccomp" / "x86_64").glob("*.policy"):
        text = source.read_text()
        if source.stem in ("vmm", "vcpu"):
            assert "open, openat, stat" in text
            text = text.replace("open, openat, stat", "stat") + "{open, openat}: 1\n"
        (tmp_path / source.name).write_text(text)
    done = attack(place, "open", guest, ["--seccomp-policy-dir", str(tmp_path)])
    assert "break-out: EACCES" in done.stderr


@pytest.mark.skipif(landlock.abi_version() < 6, reason="before Linux 6.12 it keeps no signals")
def test_warden_kills_nobody_outside_its_vm(guest: Path) -> None:
    assert "break-out: EPERM" in attack("warden", "kill", guest).stderr


def status_of(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def limits_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[47:68].strip() for line in lines}


def test_every_thread_of_every_process_is_confined(guest: Path) -> None:
    with Vmm(["-m", "16", "--cpus", "3", str(guest)]) as vmm:
        vmm.wait_for(b"echo")
        found = vmm.processes()
        twice = {found.warden, *found.devices.values()}
        names = set()
        for pid in found.all():
            for task in Path(f"/proc/{pid}/task").iterdir():
                status = status_of(task)
                assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), status["Name"]
                filters = "2" if pid in twice else "1"
                assert status["Seccomp_filters"] == filters, status["Name"]
                names.add(status["Name"])
                if pid not in (found.warden, found.forge):
                    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) & 0 == 0
            limits = limits_of(pid)
            for limit in ("core file size", "locked memory", "msgqueue size"):
                assert limits[f"Max {limit}"] == "0", (pid, limit)
        assert limits_of(found.vmm)["Max open files"] == str(VMM_OPEN_FILES)
        assert {"vcpu0", "vcpu1", "vcpu2", "crosvm-warden"} <= names
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET
