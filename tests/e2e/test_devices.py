# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel says of crosvm's processes while a guest runs: every jail, seen from outside."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.e2e.support import ROOT_SQUASHFS, TESTER, Lab, ProcessFacts

if TYPE_CHECKING:
    from tests.kvmhost.fixture import KvmHost

TESTER_UID: Final = "1000"
# Root's devices have uids that nobody else has; see jail/ids.py.
DEVICE_UIDS: Final = range(0x7000_0000, 0x7040_0000)
# CAP_DAC_OVERRIDE, CAP_SETGID and CAP_SETUID; see jail/plan.py.
WARDEN_CAPABILITIES: Final = 1 << 1 | 1 << 6 | 1 << 7
CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
VCPUS: Final = 2
DISK_MIB: Final = 3

MEMORY: Final = "/memfd:crosvm_guest (deleted)"
COUNTERS: Final = "/memfd:crosvm_counters (deleted)"
EVENTFD: Final = "anon_inode:[eventfd]"
PIDFD: Final = "anon_inode:[pidfd]"
NULL: Final = "/dev/null"
# stdin, stdout and stderr are nothing; the event loop, the eventfd that wakes it and a second
# epoll for room in the channel; the channel to the vmm; guest memory; the page of its counters.
EVERY_DEVICE: Final = Counter(
    {NULL: 3, "anon_inode:[eventpoll]": 2, EVENTFD: 1, "socket": 1, MEMORY: 1, COUNTERS: 1}
)
EVENTFDS_PER_QUEUE: Final = 2  # kick and call


# The other processes below the vmm.
HELPERS: Final = ("crosvm-forge", "crosvm-keeper", "crosvm-control", "crosvm-opener")


class Scene(NamedTuple):
    """A guest that runs, seen once."""

    lab: Lab
    disk: str
    vmm: ProcessFacts
    warden: ProcessFacts
    devices: dict[str, ProcessFacts]


@pytest.fixture(scope="module", params=["root", TESTER])
def scene(kvmhost: KvmHost, request: pytest.FixtureRequest) -> Scene:
    lab = Lab(kvmhost, request.param)
    disk = lab.disk("data.img", DISK_MIB)
    with lab.start("-c", str(VCPUS), "--rwdisk", disk, end="stay", script="sync") as vm:
        vm.wait_ready()
        vmm, warden, *below = vm.processes()
        devices = [process for process in below if process["name"] not in HELPERS]
    lab.close()
    return Scene(lab, disk, vmm, warden, {device["name"]: device for device in devices})


def kinds(process: ProcessFacts) -> Counter[str]:
    """Count the open descriptors of each kind, without the numbers of sockets and pipes."""
    return Counter(re.sub(r":\[\d+\]$", "", target) for target in process["fds"].values())


def test_there_is_one_process_for_each_device(scene: Scene) -> None:
    assert scene.warden["parent"] == scene.vmm["pid"]
    assert sorted(scene.devices) == ["block:0", "block:1", "rng"]
    assert {device["parent"] for device in scene.devices.values()} == {scene.warden["pid"]}


def test_devices_have_namespaces_of_their_own(scene: Scene) -> None:
    for kind, outer in scene.vmm["namespaces"].items():
        inner = [device["namespaces"][kind] for device in scene.devices.values()]
        assert all(link.startswith(f"{kind}:[") for link in inner), (kind, inner)
        assert len({outer, *inner}) == 1 + len(inner), (kind, outer, inner)


def test_devices_are_process_1_of_their_pid_namespace(scene: Scene) -> None:
    for name, device in scene.devices.items():
        assert device["status"]["NSpid"].split() == [str(device["pid"]), "1"], name


def test_devices_have_no_capability_and_get_none(scene: Scene) -> None:
    for name, device in scene.devices.items():
        sets = {kind: int(device["status"][kind], 16) for kind in CAPABILITY_SETS}
        assert not any(sets.values()), (name, sets)
        assert device["status"]["NoNewPrivs"] == "1", name


def test_devices_have_a_filter_and_one_thread(scene: Scene) -> None:
    for name, device in scene.devices.items():
        status = device["status"]
        # Its own, and the warden's, which it inherits.
        assert (status["Seccomp"], status["Seccomp_filters"]) == ("2", "2"), name
        assert status["Threads"] == "1", name


def test_devices_have_unprivileged_ids(scene: Scene) -> None:
    seen = set()
    for name, device in scene.devices.items():
        uids, gids = device["status"]["Uid"].split(), device["status"]["Gid"].split()
        assert len(set(uids)) == len(set(gids)) == 1, (name, uids, gids)
        seen.add(uids[0])
        if scene.lab.user == TESTER:
            assert uids == gids == [TESTER_UID] * 4, name
        else:
            assert int(uids[0]) in DEVICE_UIDS, (name, uids)
            assert uids == gids, name
            assert device["status"]["Groups"].strip() == "", name
    assert len(seen) == (1 if scene.lab.user == TESTER else len(scene.devices))


def test_nobody_but_root_may_trace_or_dump_a_device(scene: Scene) -> None:
    assert {device["owner"] for device in scene.devices.values()} == {0}


def test_devices_have_an_empty_read_only_root(scene: Scene) -> None:
    for name, device in scene.devices.items():
        assert device["root"] == [], name
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(device["root_options"].split(",")), name


@pytest.mark.parametrize(
    ("name", "image", "queues"),
    [
        pytest.param("block:0", ROOT_SQUASHFS, VCPUS, id="block-0"),
        pytest.param("block:1", "data.img", VCPUS, id="block-1"),
        pytest.param("rng", None, 1, id="rng"),
    ],
)
def test_device_has_exactly_its_descriptors(
    scene: Scene, name: str, image: str | None, queues: int
) -> None:
    expected = EVERY_DEVICE + Counter({EVENTFD: EVENTFDS_PER_QUEUE * queues})
    if image is not None:
        expected[scene.disk if image == "data.img" else image] += 1
    assert kinds(scene.devices[name]) == expected


def test_devices_have_bounds(scene: Scene) -> None:
    for name, device in scene.devices.items():
        limits = device["limits"]
        for kind in ("Max core file size", "Max processes", "Max locked memory"):
            assert limits[kind] == "0", (name, kind)
        assert int(limits["Max data size"]) <= 1 << 30, name
    sizes = {name: device["limits"]["Max file size"] for name, device in scene.devices.items()}
    assert sizes["block:1"] == str(DISK_MIB << 20)
    assert sizes["rng"] == "0"


def test_vmm_has_a_filter_and_no_privileges(scene: Scene) -> None:
    status = scene.vmm["status"]
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert [int(status[kind], 16) for kind in ("CapPrm", "CapEff", "CapAmb")] == [0, 0, 0]


def test_vmm_keeps_no_disk(scene: Scene) -> None:
    paths = scene.vmm["fds"].values()
    assert not any("/guests/" in path or ".img" in path for path in paths)


def test_warden_has_what_devices_are_made_of_but_neither_kvm_nor_guest_memory(
    scene: Scene,
) -> None:
    found = kinds(scene.warden)
    devices = len(scene.devices)
    # stderr is the vmm's, here a pipe; the others are the channels to the vmm, the forge and the
    # opener, the event loop and its children's pidfds.
    pidfds = devices + 1
    expected = Counter(
        {NULL: 2, "pipe": 1, "socket": 3, "anon_inode:[eventpoll]": 1, EVENTFD: 1, PIDFD: pidfds}
    )
    assert found == expected + Counter({ROOT_SQUASHFS: 1, scene.disk: 1})


def test_warden_keeps_few_capabilities_and_gets_none(scene: Scene) -> None:
    status = scene.warden["status"]
    expected = 0 if scene.lab.user == TESTER else WARDEN_CAPABILITIES
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == expected
    assert status["NoNewPrivs"] == "1"
