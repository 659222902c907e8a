# SPDX-License-Identifier: BSD-3-Clause
"""``--cpu-affinity`` and ``--cpus`` with a greatest number."""

from __future__ import annotations

import re

import pytest

from crosvm_py.config import CpuSpec, RunConfig
from sys_util.errors import ConfigError, UsageError
from tests.support.command_line import config_of


def pinned(config: RunConfig, vcpu: int) -> tuple[int, ...]:
    return dict(config.cpu_spec.affinity).get(vcpu, ())


def test_one_list_is_for_all_vcpus() -> None:
    config = config_of("--cpu-affinity", "0,2-3", "/k")
    assert pinned(config, 0) == pinned(config, 253) == (0, 2, 3)


def test_vcpus_are_pinned_one_by_one() -> None:
    config = config_of("--cpu-affinity", "0=1:2=3-4,0", "/k")
    assert config.cpu_spec.affinity == ((0, (1,)), (2, (0, 3, 4)))


def test_more_vcpus_can_come_later() -> None:
    assert config_of("-c", "2", "/k").cpu_spec == CpuSpec()
    config = config_of("-c", "2,max=8", "/k")
    assert (config.cpus, config.max_cpus) == (2, 8)
    assert config_of("-c", "num-cores=1,max=4", "/k").cpu_spec == CpuSpec(4)


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        (["--cpu-affinity", ""], UsageError, "--cpu-affinity: ''"),
        (["--cpu-affinity", "a"], UsageError, "--cpu-affinity: 'a'"),
        (["--cpu-affinity", "3-1"], UsageError, "'3-1' ends before it begins"),
        (["--cpu-affinity", "0=1:0=2"], UsageError, "'0=2' is not VCPU=PROCESSORS, once"),
        (["--cpu-affinity", "0=1:2"], UsageError, "'2' is not VCPU=PROCESSORS"),
        (["--cpu-affinity", "254=1"], ConfigError, "there is no vCPU 254"),
        (["--cpu-affinity", "0-8192"], ConfigError, "no host has a processor 8192"),
        (["-c", "4,max=2"], ConfigError, "max=2 is less than the 4 vCPUs of the start"),
        (["-c", "1,max=255"], ConfigError, "255 vCPUs are not in 1..254"),
        (["-c", "1,most=2"], UsageError, "unknown key"),
    ],
)
def test_value_that_makes_no_sense_is_refused(
    words: list[str], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=re.escape(reason)):
        config_of(*words, "/k")
