# SPDX-License-Identifier: BSD-3-Clause
"""A bound filter lets a process signal only itself; the policy decides about all other calls."""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

import pytest

from jail.plan import confine_vmm, load_filter
from seccomp import load_policy
from seccomp.actions import ALLOW, LOG, TRAP, Action
from seccomp.loader import parse_policy, policy_path
from seccomp.own_process import is_bound, signals_to
from seccomp.simulate import simulate
from seccomp.syscalls import ARCHITECTURES, get_arch
from seccomp.verify import probes
from tests.seccomp.test_both_architectures import POLICIES
from tests.support.processes import in_child

PID: Final = 0x12345
BOUND: Final = (
    *(
        "forge",
        "vmm",
        "vmm_memory",
        "vmm_memory_reboot",
        "vmm_reboot",
        "vcpu",
        "warden",
        "warden_sealed",
        "warden_vsock",
    ),
)


def judged(name: str, arch: str, *args: int, log_failures: bool = False) -> Action:
    policy = load_policy(name, arch=arch, log_failures=log_failures)
    known = get_arch(arch)
    return simulate(signals_to(PID, policy), known.syscalls["tgkill"], args, known.audit)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_policy_that_signals_is_bound(arch: str) -> None:
    number = get_arch(arch).syscalls["tgkill"]
    signalling = {
        name
        for name in POLICIES
        if parse_policy(policy_path(name, arch=arch), arch).rules.get(number) is not None
    }
    assert signalling == set(BOUND)
    assert all(is_bound(name, "tgkill") for name in signalling)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", BOUND)
def test_process_may_abort_itself(name: str, arch: str) -> None:
    assert judged(name, arch, PID, PID + 1, signal.SIGABRT) == ALLOW
    assert judged(name, arch, PID, PID, signal.SIGKILL) == TRAP  # as the policy says


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", BOUND)
@pytest.mark.parametrize(
    "pid", [0, 1, PID - 1, PID + 1, -PID, PID | 1 << 32, PID | 0xFFFFFFFF << 32]
)
def test_no_other_process_is_signalled(name: str, arch: str, pid: int) -> None:
    assert judged(name, arch, pid, pid, signal.SIGABRT) == TRAP


def test_what_is_only_logged_stays_so() -> None:
    assert judged("vmm", "x86_64", PID + 1, 1, signal.SIGABRT, log_failures=True) == LOG


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", BOUND)
def test_every_other_call_is_judged_by_the_policy(name: str, arch: str) -> None:
    policy, known = load_policy(name, arch=arch), get_arch(arch)
    bound = signals_to(PID, policy)
    for rule in parse_policy(policy.path, arch).rules.values():
        for args in () if rule.name == "tgkill" else probes(rule):
            found = simulate(bound, rule.number, args, known.audit)
            assert found == simulate(policy.bpf, rule.number, args, known.audit)


def test_threads_are_bound_to_the_process_that_they_are_in() -> None:
    def run() -> str:
        policy = load_policy("vmm")
        confine_vmm(cpus=1)
        kicked = []
        signal.signal(35, lambda *_: kicked.append(1))
        load_filter(policy)
        signal.pthread_kill(threading.get_ident(), 35)
        os.write(1, b"")
        return str(kicked)

    assert in_child(run) == "[1]"
