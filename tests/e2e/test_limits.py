# SPDX-License-Identifier: BSD-3-Clause
"""Groups of cgroup v2 around the devices of real guests: in force, exceeded, gone afterwards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypedDict

import pytest

from crosvm_py.kinds.table import DEVICE_KINDS
from tests.e2e.support import TESTER, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.support import Vm
    from tests.kvmhost.fixture import KvmHost

GROUPS: Final = "/project/tests/e2e/groups.py"
ROOT: Final = "/sys/fs/cgroup"
CONTROLLERS: Final = ("cpu", "memory", "pids")

# A command of the test host is in a group of its own, with all that comes of it. In that one we
# make what systemd-run --scope -p Delegate=yes would make, and $0.groups leads there.
PLACE: Final = """
group={root}$(sed -n s/^0:://p /proc/self/cgroup)
ln -s $group/own $0.groups
mkdir -p $group/own/run
echo $$ >$group/own/{place}/cgroup.procs
echo {controllers} >$group/cgroup.subtree_control
"""
TO_USER: Final = """
for file in . cgroup.procs cgroup.subtree_control run run/cgroup.procs; do
    chown {user} $group/own/$file
done
exec setpriv --reuid {user} --regid {user} --init-groups crosvm "$@"
"""
HOG: Final = 'exec python3 -I /project/tests/e2e/hog.py "$@"'

MIB: Final = 1 << 20
# Processes below the vmm that are in no device's group.
HELPERS: Final = (
    *("crosvm-warden", "crosvm-forge", "crosvm-mould", "crosvm-keeper", "crosvm-control"),
    "crosvm-opener",
)
GUEST_MIB: Final = 128
DISK_MIB: Final = 96
VCPUS: Final = 2
DEVICES: Final = ("block:0", "block:1", "rng")
# The guest's page cache takes the disk into memory that nothing has touched before.
READ_DISK: Final = "fact read sh -c 'dd if=/dev/vdb bs=1M of=/dev/null 2>/dev/null && echo all'"
READ_SOME: Final = "fact random sh -c 'head -c 16 /dev/hwrng | wc -c'; head -c 1M /dev/vdb | wc -c"

# What guest memory costs in page tables; see jail/cgroup.py.
SHARED_BYTES: Final = GUEST_MIB * MIB + GUEST_MIB * MIB // 512


class Group(TypedDict):
    """What ``groups.py`` says of one group."""

    processes: list[int]
    files: dict[str, str]


def signed(sign: str) -> str:
    return " ".join(sign + name for name in CONTROLLERS)


@pytest.fixture(autouse=True, scope="module")
def controllers(kvmhost: KvmHost) -> Iterator[None]:
    """Let groups have controllers in the test host, which has no systemd to do it."""
    kvmhost.shell(f"echo {signed('+')} >{ROOT}/cgroup.subtree_control")
    yield
    kvmhost.shell(f"echo {signed('-')} >{ROOT}/cgroup.subtree_control")


class Place:
    """Where crosvm runs in a group of its own: alone, or in ``run`` beside the groups it makes."""

    def __init__(self, host: KvmHost, user: str, place: str) -> None:
        self.lab = Lab(host, user)
        self.lab.launcher = "root"  # who alone can give away what is root's
        self.lab.launch = PLACE.format(root=ROOT, place=place, controllers=signed("+"))
        self.lab.launch += HOG if user == "root" else TO_USER.format(user=user)
        self.link = f"{self.lab.folder}/vm1.groups"

    def groups(self) -> dict[str, Group]:
        """Return the groups of VMs, by their names, and those of their devices."""
        result = self.lab.host.run(["python3", "-I", GROUPS, self.link])
        assert result.status == 0, result.stderr
        found: dict[str, Group] = json.loads(result.stdout)
        return found

    def close(self) -> None:
        """Remove it, with all that is left there."""
        group = self.lab.host.shell(f"dirname $(readlink {self.link})").strip()
        self.lab.host.shell(f"find {group} -depth -type d -exec rmdir {{}} +")
        self.lab.close()


@pytest.fixture
def place(kvmhost: KvmHost, request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(kvmhost, *request.param)
    yield place
    place.close()


def figure(group: Group, file: str, name: str) -> int:
    """Return the figure after ``name`` in a file of a group."""
    words = group["files"][file].split()
    return int(words[words.index(name) + 1])


def start(lab: Lab, *options: str, script: str) -> Vm:
    disk = lab.disk("data.img", DISK_MIB)
    return lab.start(
        *("-m", str(GUEST_MIB), "-c", str(VCPUS), "--rwdisk", disk, *options),
        script=script,
        end="stay",
    )


def check_groups(vm: Vm, found: dict[str, Group]) -> None:
    """Compare the groups of a VM with its processes."""
    name = f"crosvm-{vm.pid}"
    vmm, *below = vm.processes()
    devices = [process for process in below if process["name"] not in HELPERS]
    own = {vmm["pid"], *(process["pid"] for process in below if process["name"] in HELPERS)}
    assert {"crosvm-warden", "crosvm-forge"} <= {process["name"] for process in below}
    assert found[name]["processes"] == []
    assert found[name]["files"]["cpu.weight"] == "100"
    for device in devices:
        group = found[f"{name}/{device['name']}"]
        assert group["processes"] == [device["pid"]], device["name"]
        kind = DEVICE_KINDS[device["name"].partition(":")[0]]
        assert group["files"]["pids.max"] == str(1 + kind.threads)
        assert SHARED_BYTES < int(group["files"]["memory.max"]) < SHARED_BYTES + 2048 * MIB
    in_groups = {pid for group in found.values() for pid in group["processes"]}
    assert {device["pid"] for device in devices} <= in_groups
    aside = found.get(f"{name}.vmm")
    if aside is None:
        assert not own & in_groups
    else:
        assert own <= set(aside["processes"])  # and a thread of KVM
        assert aside["files"]["cpu.weight"] == str(100 * VCPUS)


@pytest.mark.parametrize("place", [(TESTER, ".")], indirect=True, ids=[TESTER])
def test_vmm_alone_in_a_group_steps_aside_and_back(place: Place) -> None:
    with start(place.lab, script=READ_DISK) as vm:
        vm.wait_ready()
        found = place.groups()
        check_groups(vm, found)
        assert f"crosvm-{vm.pid}.vmm" in found
        assert vm.facts()["read"] == "all"
        # What the disk filled of guest memory is charged to it, and is no reason to kill it.
        disk = found[f"crosvm-{vm.pid}/block:1"]
        assert figure(disk, "memory.stat", "shmem") > DISK_MIB * MIB // 2
        assert figure(disk, "memory.events", "oom_kill") == 0
        shown = json.loads(place.lab.shell(f"crosvm devices --json {vm.socket}"))
        own = place.lab.shell(f"readlink {place.link}").strip()
        assert [it["cgroup"] for it in shown] == [f"{own}/crosvm-{vm.pid}/{it}" for it in DEVICES]
        assert vm.control("stop").status == 0
        assert vm.wait() == 0
    assert place.groups() == {}
    assert place.lab.shell(f"cat {place.link}/cgroup.subtree_control").split() == []


@pytest.mark.parametrize("place", [("root", "run")], indirect=True, ids=["root"])
def test_device_over_its_limit_is_named_and_the_others_go_on(place: Place) -> None:
    with start(place.lab, "--cgroup", place.link, script=READ_SOME) as vm:
        vm.wait_ready()
        assert vm.facts() == {"random": "16"}
        limit = (SHARED_BYTES >> 20) + 16
        assert f"killed by SIGKILL: over its memory limit of {limit} MiB" in vm.log
        found = place.groups()
        check_groups(vm, found)
        assert figure(found[f"crosvm-{vm.pid}/rng"], "memory.events", "oom_kill") == 1
        place.lab.shell(f"kill -9 {vm.pid}")
        assert vm.wait() == 128 + 9
        gone = f"for _ in $(seq 100); do ls -d {place.link}/crosvm-* || exit 0; sleep 0.1; done"
        assert place.lab.host.run(["sh", "-c", f"{gone}; exit 1"]).status == 0


@pytest.mark.parametrize("place", [(TESTER, "run")], indirect=True, ids=[TESTER])
def test_next_vm_removes_what_a_killed_warden_left(place: Place) -> None:
    host, lab = place.lab.host, place.lab
    with start(lab, "--cgroup", place.link, script=READ_SOME) as vm:
        vm.wait_ready()
        check_groups(vm, place.groups())
        _, warden, *_ = vm.processes()
        left = f"crosvm-{vm.pid}"
        host.shell(f"kill -9 {warden['pid']}")
        assert vm.wait() == 33
    devices = [f"{left}/{name}" for name in DEVICES]
    assert sorted(place.groups()) == [left, *devices]
    lab.launch, lab.launcher = 'exec crosvm "$@"', "root"
    with lab.start("--cgroup", place.link, "--block", f"path={lab.folder}/nothing") as vm:
        assert vm.wait() == 1
        assert f"/{left}, which a killed VM had left" in vm.log
    assert place.groups() == {}
