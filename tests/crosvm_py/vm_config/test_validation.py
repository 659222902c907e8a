# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from crosvm_py.vm_config.codec import decode
from crosvm_py.vm_config.devices import DiskConfig
from crosvm_py.vm_config.machine import NumaConfig, PciSegmentConfig, PlatformConfig
from crosvm_py.vm_config.pci_rules import DEVICE_KEYS, devices_of
from crosvm_py.vm_config.problem import Problem
from crosvm_py.vm_config.schema import VmConfig
from crosvm_py.vm_config.validation import problems
from tests.crosvm_py.vm_config.values import records

GOOD: dict[str, Any] = {
    "payload": {"kernel": "/k"},
    "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
    "memory": {"size": 1 << 30, "shared": True},
}
CPUS = {"boot_vcpus": 1, "max_vcpus": 4}
LIMITS = {"ops": {"size": 1, "refill_time": 1}}
SEGMENTS = {"num_pci_segments": 2, "iommu_segments": [1]}


def found(**changes: object) -> list[Problem]:
    config = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    return problems(decode(json.dumps(config).encode(), VmConfig, keep_fds=True))


def topology(*parts: int) -> dict[str, object]:
    names = ("threads_per_core", "cores_per_die", "dies_per_package", "packages")
    return {**CPUS, "topology": dict(zip(names, parts, strict=True))}


def memory(**values: object) -> dict[str, object]:
    return {"size": 1 << 30, **values}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="small"),
        pytest.param({"payload": {"firmware": "/f"}}, id="firmware"),
        pytest.param({"cpus": topology(2, 1, 1, 2)}, id="topology"),
        pytest.param({"memory": memory(hugepages=True, hugepage_size=2 << 20)}, id="huge pages"),
        pytest.param({"memory": {"size": 0, "zones": [{"id": "a", "size": 1}]}}, id="zones"),
        pytest.param({"disks": [{"path": "/a"}, {"path": "/b", "serial": "s" * 20}]}, id="disks"),
        pytest.param(
            {"disks": [{"vhost_user": True, "vhost_socket": "/s"}], "balloon": {"size": 0}},
            id="vhost-user, empty balloon",
        ),
        pytest.param({"net": [{"fds": [3], "mtu": 1280}, {"tap": "t", "mac": None}]}, id="cards"),
        pytest.param({"net": [{"ip": "10.0.0.1", "mask": "255.0.0.0"}]}, id="address"),
        pytest.param({"fs": [{"tag": "t", "socket": "/s"}]}, id="fs"),
        pytest.param(
            {"platform": SEGMENTS, "fs": [{"tag": "t", "socket": "/s"}]}, id="another segment"
        ),
        pytest.param(
            {
                "platform": SEGMENTS,
                "vsock": {
                    "cid": 3,
                    "socket": "/s",
                    "pci_segment": 1,
                    "iommu": True,
                    "pci_device_id": 0,
                },
            },
            id="slot 0 of segment 1",
        ),
        pytest.param({"numa": [{"guest_numa_id": 0, "pci_segments": [0]}]}, id="numa"),
        pytest.param({"landlock_rules": [{"path": "/", "access": "wr"}]}, id="landlock"),
    ],
)
def test_a_good_configuration_has_no_problems(changes: dict[str, object]) -> None:
    assert found(**changes) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payload": ...}, "payload: there is nothing to boot"),
        ({"payload": {"cmdline": "a"}}, "payload: there is nothing to boot"),
        ({"payload": {"kernel": "a", "firmware": "b"}}, "payload: kernel and firmware exclude"),
        ({"cpus": {"boot_vcpus": 0, "max_vcpus": 1}}, "cpus.boot_vcpus: a VM has at least one"),
        ({"cpus": {"boot_vcpus": 3, "max_vcpus": 2}}, "cpus.max_vcpus: 2 is less than boot_vcpus"),
        ({"cpus": {"boot_vcpus": 1, "max_vcpus": 8193}}, "cpus.max_vcpus: 8193 is more than 8192"),
        ({"cpus": {**CPUS, "profile": "x"}}, "cpus.profile: 'x' is not host"),
        ({"cpus": topology(1, 0, 1, 4)}, "cpus.topology: no part of it can be 0"),
        ({"cpus": topology(4, 1, 1, 1)}, "cpus.topology: 4 threads per core"),
        ({"cpus": topology(1, 3, 1, 1)}, "cpus.topology: it has 3 vCPUs, and max_vcpus is 4"),
        ({"memory": memory(hugepage_size=2 << 20)}, "memory.hugepage_size: it needs hugepages"),
        ({"memory": memory(hugepages=True, hugepage_size=3)}, "3 is not a power of two"),
        ({"memory": memory(hugepages=True, hugepage_size=0)}, "0 is not a power of two"),
        ({"memory": memory(shared=True, mergeable=True)}, "memory.mergeable: shared and"),
        ({"memory": memory(hotplugged_size=1)}, "memory.hotplugged_size: 1 is more than"),
        ({"memory": memory(zones=[{"id": "a", "size": 1}])}, "memory.size: 1073741824 must be 0"),
        ({"memory": {"size": 0}}, "memory.size: a VM has memory"),
        (
            {"memory": {"size": 0, "zones": [{"id": "a", "size": 1}, {"id": "a", "size": 1}]}},
            r"memory.zones\[1\].id: 'a' is the name of another zone",
        ),
        (
            {"memory": {"size": 0, "zones": [{"id": "a", "size": 1, "hotplug_size": 1}]}},
            r"memory.zones\[0\].hotplug_size: it needs hotplug_method VirtioMem",
        ),
        ({"serial": {"mode": "File"}}, "serial.file: mode File needs it"),
        ({"console": {"mode": "File", "file": ""}}, "console.file: mode File needs it"),
        ({"serial": {"mode": "Socket"}}, "serial.socket: mode Socket needs it"),
        ({"console": {"mode": "Socket", "socket": "/s"}}, "console.mode: Socket is for the serial"),
        ({"disks": [{}]}, r"disks\[0\].path: is missing"),
        ({"disks": [{"path": "a", "vhost_socket": "b"}]}, "path and vhost_socket exclude"),
        ({"disks": [{"vhost_user": True}]}, r"disks\[0\].vhost_socket: the socket of the other"),
        ({"disks": [{"path": "a", "num_queues": 0}]}, r"num_queues: 0 is not in 1..2"),
        ({"disks": [{"path": "a", "num_queues": 3}]}, r"num_queues: 3 is not in 1..2"),
        ({"disks": [{"path": "a", "queue_size": 2}]}, "2 is not a power of two in 4..32768"),
        ({"disks": [{"path": "a", "queue_size": 100}]}, "100 is not a power of two"),
        ({"disks": [{"path": "a", "queue_size": 0}]}, "0 is not a power of two"),
        ({"disks": [{"path": "a", "serial": "é" * 11}]}, "serial: more than 20 bytes"),
        ({"disks": [{"path": "a", "rate_limit_group": "g"}]}, "there is no group 'g'"),
        (
            {"disks": [{"vhost_user": True, "vhost_socket": "/s", "rate_limiter_config": LIMITS}]},
            "rate_limiter_config: vhost-user has no limits",
        ),
        (
            {"disks": [{"vhost_user": True, "vhost_socket": "/s", "iommu": True}]},
            "iommu: this device cannot be behind",
        ),
        (
            {"disks": [{"vhost_user": True, "vhost_socket": "/s"}], "memory": {"size": 4}},
            r"disks\[0\]: it needs memory that is shared",
        ),
        ({"net": [{"num_queues": 1}]}, r"net\[0\].num_queues: 1 is not an even number"),
        ({"net": [{"num_queues": 6}]}, "3 pairs are more than vCPUs, 2"),
        ({"net": [{"queue_size": 65535}]}, "65535 is not a power of two"),
        ({"net": [{"fds": [3, 4]}]}, "2 descriptors are not num_queues / 2, 1"),
        ({"net": [{"fds": [-1]}]}, r"net\[0\].fds\[0\]: -1 is no descriptor"),
        ({"net": [{"fds": [2]}]}, r"net\[0\].fds\[0\]: 2 is no descriptor"),
        ({"net": [{"fds": [5, 5], "num_queues": 4}]}, "a descriptor is there twice"),
        ({"net": [{"mtu": 1279}]}, "mtu: 1279 is less than 1280"),
        ({"net": [{"ip": "10.0.0.1"}]}, r"net\[0\].mask: ip and mask need each other"),
        ({"net": [{"ip": "10.0.0", "mask": "255.0.0.0"}]}, "ip: '10.0.0' is not an IPv4 address"),
        ({"net": [{"mac": "52:54:00:12:34"}]}, "mac: '52:54:00:12:34' is not a MAC address"),
        ({"net": [{"mac": "52:54:00:12:34:+6"}]}, "is not a MAC address"),
        ({"net": [{"offload_csum": False}]}, "offload_tso: it needs offload_csum"),
        ({"fs": [{"tag": "t" * 37, "socket": "/s"}]}, "tag: 37 bytes are not in 1..36"),
        ({"fs": [{"tag": "t", "socket": "/s", "iommu": True}]}, r"fs\[0\].iommu: this device"),
        (
            {"user_devices": [{"socket": "/s"}], "memory": {"size": 4}},
            r"user_devices\[0\]: it needs memory that is shared",
        ),
        ({"devices": [{}]}, r"devices\[0\]: it needs path or fd"),
        ({"devices": [{"fd": 3}]}, r"devices\[0\].fd: it needs platform.iommufd_fd"),
        ({"devices": [{"path": "a", "x_exclude_mmap_bars": [6]}]}, "6 is not in 0..5"),
        (
            {
                "platform": {"vfio_p2p_dma": False},
                "devices": [{"path": "a", "x_nv_gpudirect_clique": 1}],
            },
            "it needs platform.vfio_p2p_dma",
        ),
        ({"platform": {"iommufd_fd": 3}}, "platform.iommufd_fd: it needs iommufd"),
        ({"platform": {"num_pci_segments": 0}}, "num_pci_segments: 0 is not in 1..96"),
        ({"platform": {"num_pci_segments": 97}}, "num_pci_segments: 97 is not in 1..96"),
        ({"platform": {"iommu_segments": [1]}}, r"iommu_segments\[0\]: there is no segment 1"),
        ({"pci_segments": [{"mmio32_aperture_weight": 0}]}, "mmio32_aperture_weight: it cannot"),
        ({"pci_segments": [{}, {}]}, r"pci_segments\[1\].pci_segment: segment 0 is there twice"),
        ({"balloon": {"size": 1 << 30}}, "balloon.size: 1073741824 is not less than"),
        ({"vsock": {"cid": 2, "socket": "/s"}}, "vsock.cid: 2 is reserved"),
        ({"vsock": {"cid": 4294967295, "socket": "/s"}}, "vsock.cid: 4294967295 is reserved"),
        ({"vsock": {"cid": 3, "socket": "/s", "id": "__v"}}, "vsock.id: '__v' begins with __"),
        ({"balloon": {"size": 0, "id": ""}}, "balloon.id: it is empty"),
        ({"disks": [{"path": "a", "pci_segment": 1}]}, "pci_segment: there is no segment 1"),
        (
            {"platform": SEGMENTS, "disks": [{"path": "a", "pci_segment": 1}]},
            r"disks\[0\].iommu: segment 1 is behind the virtual IOMMU",
        ),
        ({"numa": [{"guest_numa_id": 1, "pci_segments": [0]}]}, "segment 0 belongs to node 0"),
        (
            {
                "numa": [
                    {"guest_numa_id": 0, "memory_zones": ["a"]},
                    {"guest_numa_id": 1, "memory_zones": ["a"]},
                ]
            },
            r"numa\[1\].memory_zones: 'a' is in another node, too",
        ),
        ({"numa": [{"guest_numa_id": 0}, {"guest_numa_id": 0}]}, "node 0 is there twice"),
        ({"landlock_rules": [{"path": "/", "access": "rx"}]}, "'rx' is not made of r and w"),
    ],
)
def test_a_broken_rule_is_named(changes: dict[str, object], message: str) -> None:
    first, *_ = found(**changes)
    assert first.status == 400
    with pytest.raises(ValueError, match=message):
        raise ValueError(first.message())


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        (
            {"disks": [{"path": "a", "pci_device_id": 188}]},
            400,
            "Given PCI device ID (188) is out of the supported range of 0..32",
        ),
        (
            {"disks": [{"path": "a", "pci_device_id": 0}]},
            400,
            "Given PCI device ID (0) is reserved",
        ),
        (
            {
                "disks": [{"path": "a", "pci_device_id": 5}],
                "balloon": {"size": 0, "pci_device_id": 5},
            },
            500,
            "Valid PCI device identifier but already used: 5",
        ),
        (
            {"disks": [{"path": "a", "id": "x"}], "net": [{"id": "x"}]},
            409,
            "'x' is the name of disks[0], too",
        ),
        ({"disks": [{"path": "a"}, {"path": "a"}]}, 409, "'a' is that of disks[0], too"),
        ({"devices": [{"path": "a"}, {"path": "a"}]}, 409, "'a' is that of devices[0], too"),
    ],
)
def test_clients_know_these_texts_and_codes(
    changes: dict[str, object], status: int, text: str
) -> None:
    (only,) = found(**changes)
    assert (only.status, only.text) == (status, text)
    assert only.chain() == (f"{only.place} is invalid", text)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records(VmConfig))
def test_any_configuration_can_be_checked(config: VmConfig) -> None:
    assert all(problem.message().isprintable() for problem in problems(config))


def test_every_list_of_devices_is_looked_at() -> None:
    keys = {place.partition("[")[0] for place, _ in devices_of(VmConfig())}
    assert keys == {"console", "rng"}
    lists = {"disks", "net", "generic_vhost_user", "fs", "pmem", "vdpa", "devices", "user_devices"}
    assert {*DEVICE_KEYS} == lists | {"console", "rng", "vsock", "balloon", "rtc"}


class Counted(int):
    """A number that counts how often numbers of its kind are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


COUNT = 300


@pytest.mark.parametrize(
    "many",
    [
        {"numa": tuple(NumaConfig(guest_numa_id=Counted(at)) for at in range(COUNT))},
        {"pci_segments": tuple(PciSegmentConfig(pci_segment=Counted(at)) for at in range(COUNT))},
        {
            "platform": PlatformConfig(iommu_segments=tuple(map(Counted, range(COUNT)))),
            "disks": (DiskConfig(pci_segment=Counted(COUNT)),) * COUNT,
        },
    ],
    ids=["nodes", "segments", "disks"],
)
def test_what_is_compared_grows_with_the_length_of_lists_alone(many: dict[str, Any]) -> None:
    Counted.compared = 0
    problems(VmConfig(**many))
    assert Counted.compared <= 20 * COUNT
