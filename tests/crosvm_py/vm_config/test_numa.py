# SPDX-License-Identifier: BSD-3-Clause
"""Memory zones and NUMA nodes: what becomes of them, and what is refused."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from crosvm_py.config import MemoryZone, NumaNode
from crosvm_py.vm_config.codec import decode
from crosvm_py.vm_config.errors import UnfitConfigError
from crosvm_py.vm_config.from_run import vm_config
from crosvm_py.vm_config.schema import VmConfig
from crosvm_py.vm_config.to_run import all_problems, run_config
from crosvm_py.vm_config.unsupported import ignored

MIB: Final = 1 << 20
CPUS: Final = {"boot_vcpus": 1, "max_vcpus": 4}


def config(**keys: object) -> VmConfig:
    found = {"payload": {"kernel": "/k"}, "cpus": CPUS, **keys}
    return decode(json.dumps(found).encode(), VmConfig)


def zones(**more: object) -> dict[str, object]:
    first = {"id": "a", "size": 256 * MIB, "host_numa_node": 0}
    return {"size": 0, "zones": [first, {"id": "b", "size": 128 * MIB, **more}]}


def nodes(**more: object) -> list[dict[str, object]]:
    return [{"guest_numa_id": 0}, {"guest_numa_id": 1, **more}]


TWO: Final[dict[str, Any]] = {
    "memory": zones(),
    "platform": {"num_pci_segments": 2},
    "numa": [
        {"guest_numa_id": 0, "cpus": [0, 1], "memory_zones": ["a"], "pci_segments": [0]},
        {
            "guest_numa_id": 1,
            "cpus": [2, 3],
            "memory_zones": ["b"],
            "distances": [{"destination": 0, "distance": 30}, {"destination": 1, "distance": 10}],
            "pci_segments": [1],
        },
    ],
}


def test_zones_and_nodes_become_those_of_a_run_and_are_told_again() -> None:
    made = run_config(config(**TWO))
    assert made.memory_bytes == 384 * MIB
    assert made.zones == (MemoryZone("a", 256 * MIB, 0), MemoryZone("b", 128 * MIB))
    assert made.numa == (
        NumaNode(0, (0, 1), ("a",), (), (0,)),
        NumaNode(1, (2, 3), ("b",), ((0, 30),), (1,)),
    )
    told = vm_config(made)
    assert told.memory.size == 0
    again = run_config(told)
    assert (again.memory_bytes, again.zones, again.numa) == (384 * MIB, made.zones, made.numa)


def test_nobody_who_asks_for_none_has_any() -> None:
    made = run_config(config())
    assert (made.zones, made.numa) == ((), ())
    assert (vm_config(made).memory.zones, vm_config(made).numa) == (None, None)


def test_memory_that_nobody_divides_can_be_of_a_node() -> None:
    made = run_config(config(numa=nodes(memory_zones=["mem0"])))
    assert made.zones == (MemoryZone("mem0", 512 * MIB),)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"memory": zones(file="/f")}, r"memory.zones\[1\].file: is not supported"),
        ({"memory": zones(hugepages=True)}, r"zones\[1\].hugepages: .*memory.hugepages is for all"),
        ({"memory": zones(prefault=True)}, r"zones\[1\].prefault: .*memory.prefault is for all"),
        (
            {"memory": {**zones(hotplug_size=MIB), "hotplug_method": "VirtioMem"}},
            r"zones\[1\].hotplug_size: .*is for all of memory",
        ),
        ({"memory": zones(size=5)}, r"memory.zones\[1\].size: 5 bytes is not a multiple of 4096"),
        ({"memory": zones(host_numa_node=1024)}, r"zones\[1\].host_numa_node"),
        (
            {"memory": {**zones(size=MIB), "hugepages": True}},
            r"memory.zones\[1\].size: 1048576 bytes is not a multiple of 2097152",
        ),
        (
            {"memory": {"size": 0, "zones": [{"id": f"{at}", "size": MIB} for at in range(65)]}},
            "memory.zones: 65 are above the limit of 64",
        ),
        ({"numa": [{"guest_numa_id": 1}]}, "numa: node 0 is missing"),
        ({"numa": [*nodes(), {"guest_numa_id": 64}]}, r"numa\[2\].guest_numa_id: 64 is more"),
        ({"numa": nodes(cpus=[4])}, r"numa\[1\].cpus: there is no vCPU 4: max_vcpus is 4"),
        ({"numa": nodes(cpus=[4294967295])}, "there is no vCPU 4294967295"),
        ({"numa": [{"guest_numa_id": 0, "cpus": [2, 2]}]}, "vCPU 2 is there twice"),
        ({"numa": nodes(memory_zones=["z"])}, r"numa\[1\].memory_zones: no memory zone has .* 'z'"),
        ({"memory": zones(), "numa": nodes(memory_zones=["mem0"])}, "no memory zone has"),
        (
            {"numa": nodes(distances=[{"destination": 2, "distance": 20}])},
            r"numa\[1\].distances\[0\]: there is no node 2",
        ),
        (
            {"numa": nodes(distances=[{"destination": 0, "distance": 10}])},
            "10 is less than 11, the least from another node",
        ),
        (
            {"numa": nodes(distances=[{"destination": 1, "distance": 11}])},
            "a node is 10 from itself, not 11",
        ),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, object], text: str) -> None:
    with pytest.raises(UnfitConfigError, match=text):
        run_config(config(**keys))
    assert all_problems(config(**keys))[0].status == 500


def test_hints_of_zones_have_no_effect() -> None:
    assert ignored(config(memory=zones(mergeable=True, reserve=True))) == [
        "memory.zones[1].mergeable has no effect: pages are not merged",
        "memory.zones[1].reserve has no effect: memory is taken when it is used",
    ]
