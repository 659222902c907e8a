# SPDX-License-Identifier: BSD-3-Clause
"""What a configuration says of vCPUs beside their number: where they are, and where they run."""

from __future__ import annotations

import re

import pytest

from crosvm_py.config import CpuSpec, Topology
from crosvm_py.vm_config.errors import UnfitConfigError
from crosvm_py.vm_config.from_run import vm_config
from crosvm_py.vm_config.machine import CpuAffinity, CpuTopology
from crosvm_py.vm_config.to_run import run_config
from tests.crosvm_py.vm_config.test_to_run import config


def test_processors_are_arranged_and_pinned_as_the_file_says() -> None:
    topology = {"threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1, "packages": 1}
    cpus = {"boot_vcpus": 1, "max_vcpus": 4, "topology": topology, "max_phys_bits": 40}
    pinned = [{"vcpu": 1, "host_cpus": [3, 5]}]
    made = run_config(config(cpus={**cpus, "affinity": pinned}))
    assert made.cpu_spec == CpuSpec(4, Topology(2, 2, 1, 1), 40, ((1, (3, 5)),))
    assert vm_config(made).cpus.topology == CpuTopology(**topology)
    assert vm_config(made).cpus.affinity == (CpuAffinity(vcpu=1, host_cpus=(3, 5)),)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 35}},
            "cpus.max_phys_bits: 35 bits are too few",
        ),
        (
            {
                "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 36},
                "memory": {"size": 64 << 30},
            },
            "cpus.max_phys_bits: 36 bits are too few",
        ),
        (
            {
                "cpus": {
                    "boot_vcpus": 1,
                    "max_vcpus": 1,
                    "affinity": [{"vcpu": 0, "host_cpus": []}],
                }
            },
            "cpus.affinity[0].host_cpus: it names no processor",
        ),
        (
            {
                "cpus": {
                    "boot_vcpus": 1,
                    "max_vcpus": 1,
                    "affinity": [{"vcpu": 0, "host_cpus": [1, (1 << 64) - 1]}],
                }
            },
            "no host has a processor 18446744073709551615",
        ),
        (
            {
                "cpus": {
                    "boot_vcpus": 1,
                    "max_vcpus": 165,
                    "topology": {
                        "threads_per_core": 1,
                        "cores_per_die": 33,
                        "dies_per_package": 1,
                        "packages": 5,
                    },
                }
            },
            "cpus.topology: it needs APIC ids beyond 253",
        ),
    ],
)
def test_what_no_processor_has_is_refused(keys: dict[str, object], text: str) -> None:
    with pytest.raises(UnfitConfigError, match=re.escape(text)):
        run_config(config(**keys))
