# SPDX-License-Identifier: BSD-3-Clause
"""vCPUs that come to a running VM and go, with a guest that is as bad as it can be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ControlError, ask
from crosvm_py.requests.debug import DumpVm, VmDump
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import ListVcpus, QueryVm, VcpuList, VmFacts
from tests.baremetal.vmm import Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("cpu_hotplug", tmp_path_factory.mktemp("cpus"))


class Cpus:
    """A VM with one vCPU of three, and what its guest and its client say."""

    def __init__(self, vmm: Vmm, sock: Path) -> None:
        self.vmm, self.sock = vmm, str(sock)

    def guest_does(self, key: bytes, answer: bytes) -> None:
        """Have the guest do something, and wait for what it says then."""
        self.vmm.output = b""
        self.vmm.type(key)
        self.vmm.wait_for(b"\n")
        assert answer in self.vmm.output

    def resize(self, cpus: int) -> bool:
        """Return whether it was done, and not too early."""
        answer = ask(self.sock, Resize(cpus))
        assert isinstance(answer, Resized)
        return not answer.is_busy

    @property
    def count(self) -> int:
        answer = ask(self.sock, QueryVm())
        assert isinstance(answer, VmFacts)
        return answer.cpus

    def listed(self) -> list[int]:
        answer = ask(self.sock, ListVcpus())
        assert isinstance(answer, VcpuList)
        return [vcpu.index for vcpu in answer.vcpus]

    def places(self) -> list[str]:
        answer = ask(self.sock, DumpVm())
        assert isinstance(answer, VmDump)
        return [vcpu.place for vcpu in answer.vcpus]

    def threads(self) -> set[str]:
        tasks = Path(f"/proc/{self.vmm.process.pid}/task").iterdir()
        names = {(task / "comm").read_text().strip() for task in tasks}
        return {name for name in names if name.startswith(("vcpu", "spare"))}

    def has(self, *cpus: int) -> bool:
        """Wait until the guest has exactly these vCPUs, by the names of their threads."""
        wanted = {f"vcpu{cpu}" if cpu in cpus else f"spare{cpu}" for cpu in range(3)}
        return eventually(lambda: self.threads() == wanted)


@pytest.fixture
def cpus(guest: Path, tmp_path: Path) -> Iterator[Cpus]:
    with Vmm(["-m", "16", "-c", "1,max=3", "-s", tmp_path / "sock", guest]) as vmm:
        vmm.wait_for(b"cpus\n")
        assert crosvm("devices", tmp_path / "sock").returncode == 0  # it has started
        yield Cpus(vmm, tmp_path / "sock")


def test_vcpus_come_start_go_and_come_again(cpus: Cpus) -> None:
    assert cpus.has(0)
    assert cpus.listed() == [0]
    cpus.guest_does(b"s", b"1000 scanned")
    assert cpus.resize(3)
    cpus.guest_does(b"s", b"13+3+0 scanned")
    assert (cpus.has(0, 1, 2), cpus.count) == (True, 3)
    assert cpus.listed() == [0, 1, 2]
    assert cpus.resize(2)
    assert cpus.count == 2
    cpus.guest_does(b"s", b"1150 scanned")
    assert not cpus.resize(1)  # the guest has not let go of one yet
    assert cpus.has(0, 1, 2)
    cpus.guest_does(b"e", b"ejected")
    assert cpus.has(0, 1)
    assert cpus.resize(3)
    cpus.guest_does(b"s", b"113+0 scanned")
    assert cpus.has(0, 1, 2)


def test_guest_that_writes_everything_gets_no_vcpu_and_loses_none(cpus: Cpus) -> None:
    cpus.guest_does(b"a", b"attacked 0000")
    cpus.guest_does(b"e", b"ejected")
    assert cpus.has(0)
    assert cpus.resize(3)
    cpus.guest_does(b"s", b"13+3+0 scanned")
    cpus.guest_does(b"e", b"ejected")
    assert (cpus.has(0, 1, 2), cpus.count) == (True, 3)
    assert cpus.resize(1)
    cpus.guest_does(b"a", b"attacked")  # ejects what it was asked for
    assert (cpus.has(0), cpus.count) == (True, 1)


def test_suspended_and_examined_vm_may_have_spare_vcpus(cpus: Cpus) -> None:
    assert eventually(lambda: cpus.places()[1:] == ["spare", "spare"])
    assert crosvm("suspend", cpus.sock).returncode == 0
    assert cpus.places() == ["held", "spare", "spare"]
    assert cpus.resize(2)
    assert eventually(lambda: cpus.places() == ["held", "held", "spare"])
    assert crosvm("resume", cpus.sock).returncode == 0
    cpus.guest_does(b"s", b"13+00 scanned")
    dump = crosvm("debug", "dump", cpus.sock, "--json")
    assert [vcpu["place"] for vcpu in json.loads(dump.stdout)["vcpus"]][2] == "spare"
    assert "the guest does not have it now" in crosvm("debug", "dump", cpus.sock).stdout


@pytest.mark.parametrize("count", [0, 4, 1000])
def test_impossible_number_is_refused(cpus: Cpus, count: int) -> None:
    with pytest.raises(ControlError, match=f"{count} vCPUs are not 1 to 3"):
        cpus.resize(count)
    assert cpus.count == 1


def test_command_says_what_the_vm_answers(cpus: Cpus) -> None:
    assert crosvm("resize", "--cpus=2", cpus.sock).returncode == 0
    assert cpus.count == 2
    refused = crosvm("resize", "--cpus=4", cpus.sock)
    assert (refused.returncode, "4 vCPUs are not 1 to 3" in refused.stderr) == (1, True)
    assert crosvm("resize", "--cpus=1", cpus.sock).returncode == 0
    assert crosvm("resize", "--cpus=1", cpus.sock).returncode == 0
    assert cpus.resize(2)  # the vCPU may stay after all
    assert (cpus.has(0, 1), cpus.count) == (True, 2)


def test_reset_keeps_the_number_of_vcpus(guest: Path, tmp_path: Path) -> None:
    words = ["-m", "16", "-c", "1,max=3", "--reboot", "-s", str(tmp_path / "sock")]
    with Vmm([*words, guest]) as vmm:
        vmm.wait_for(b"cpus\n")
        assert crosvm("devices", tmp_path / "sock").returncode == 0
        cpus = Cpus(vmm, tmp_path / "sock")
        assert cpus.resize(3)
        cpus.guest_does(b"s", b"13+3+0 scanned")
        assert cpus.resize(2)  # the guest does not let go of one
        cpus.guest_does(b"r", b"cpus")
        assert (cpus.has(0, 1), cpus.count) == (True, 2)
        cpus.guest_does(b"s", b"1100 scanned")
        assert cpus.resize(3)
        cpus.guest_does(b"s", b"113+0 scanned")
        assert cpus.has(0, 1, 2)


def test_vcpus_run_where_the_user_wants_them(guest: Path, tmp_path: Path) -> None:
    processor = min(os.sched_getaffinity(0))
    words = ["-m", "16", "-c", "1,max=2", "--cpu-affinity", str(processor)]
    with Vmm([*words, "-s", tmp_path / "sock", guest]) as vmm:
        vmm.wait_for(b"cpus\n")
        where = {
            (task / "comm").read_text().strip(): os.sched_getaffinity(int(task.name))
            for task in Path(f"/proc/{vmm.process.pid}/task").iterdir()
        }
    assert [where["vcpu0"], where["spare1"]] == [{processor}] * 2
    assert where["crosvm"] == os.sched_getaffinity(0)


def test_processor_that_the_host_lacks_is_named(guest: Path) -> None:
    refused = crosvm("run", "-m", "16", "--cpu-affinity", "0=8191", guest)
    assert refused.returncode == 1
    assert "run vCPU 0 on processors 8191" in refused.stderr
    assert "--cpu-affinity" in refused.stderr
