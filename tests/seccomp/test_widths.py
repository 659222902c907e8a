# SPDX-License-Identifier: BSD-3-Clause
"""Nobody can pass a denied value by setting bits of an argument that the kernel does not read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from seccomp import load_policy, syscall_number
from seccomp.actions import ALLOW, TRAP
from seccomp.errors import PolicyError
from seccomp.loader import parse_policy
from seccomp.parser import parse
from seccomp.simulate import decode, run, simulate
from seccomp.syscalls import ARCHITECTURES, get_arch
from seccomp.verify import probes
from seccomp.widths import is_wide
from tests.seccomp.test_both_architectures import POLICIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seccomp.rules import Rule

LOW: Final = 0xFFFFFFFF
# Values that an attacker can put into the upper half of a register, which the kernel does not read.
HIGH_HALVES: Final = (1 << 32, 1 << 63, LOW << 32)


def parsed(text: str) -> None:
    arch = get_arch("x86_64")
    parse({"x.policy": text.encode()}, arch.name, arch.syscalls)


@pytest.mark.parametrize(
    "rule",
    [
        "rt_sigaction: arg0 != SIGSYS",
        "kill: arg0 > 0",
        "kill: arg0 >= 1 && arg1 == SIGKILL",
        "kill: arg1 == SIGKILL && arg0 <= 0x100000005",
        "ioctl: arg1 == KVM_RUN || arg1 != TIOCSTI",
        "socket: arg1 & 0x100000000",
        "socket: arg1 in 0x1FFFFFFFF",
        "clone: arg0 != CLONE_NEWUSER",
        "kill: arg0 == 0x10000001f",
        "kill: arg0 != -1",
        "kill: arg0 > 2; return EPERM",
        "read: arg5 != 1",
        "{read, kill}: arg1 > 4",
    ],
)
def test_condition_on_bits_that_the_kernel_does_not_read_is_refused(rule: str) -> None:
    with pytest.raises(PolicyError, match=r"x\.policy:1: \w+: 'arg.* upper half of arg\d"):
        parsed(rule)


@pytest.mark.parametrize(
    "rule",
    [
        "rt_sigaction: arg0 < SIGSYS || arg0 > SIGSYS && arg0 <= 64",
        "kill: arg0 > 0 && arg0 <= 0x400000",
        "kill: arg0 != 5 && arg0 < 10",
        "kill: arg0 == -1",
        "kill: arg0 >= 0",
        "openat: arg0 == AT_FDCWD",
        "mmap: arg2 in ~PROT_EXEC && arg3 & MAP_ANONYMOUS",
        "socket: arg1 & 0x80000000",
        "ioctl: arg1 <= 0xFFFFFFFF",
        "read: arg2 > 5",
        "read: arg1 != 0",
        "fanotify_mark: arg2 != 1",
    ],
)
def test_condition_on_what_the_kernel_reads_is_taken(rule: str) -> None:
    parsed(rule)


@pytest.mark.parametrize(
    ("call", "args"),
    [("mmap", "015"), ("read", "12"), ("kill", ""), ("ioctl", ""), ("no_call", ""), ("lseek", "1")],
)
def test_table_has_addresses_lengths_and_offsets(call: str, args: str) -> None:
    assert "".join(str(arg) for arg in range(6) if is_wide(call, arg)) == args


def high_halves(rule: Rule) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield calls with high bits in an int argument, each with the call as the kernel sees it."""
    tested = {atom.arg for clause in rule.allow for atom in clause}
    for args in probes(rule):
        for arg in tested:
            for high in () if is_wide(rule.name, arg) else HIGH_HALVES:
                low = args[arg] & LOW
                yield (
                    (*args[:arg], high | low, *args[arg + 1 :]),
                    (*args[:arg], low, *args[arg + 1 :]),
                )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", POLICIES)
def test_upper_half_opens_nothing(name: str, arch: str) -> None:
    policy, audit = load_policy(name, arch=arch), get_arch(arch).audit
    program = decode(policy.bpf)
    for rule in parse_policy(policy.path, arch).rules.values():
        for args, read in high_halves(rule):
            if run(program, rule.number, args, audit) == ALLOW:
                assert run(program, rule.number, read, audit) == ALLOW, (rule.name, args)


def test_handler_of_sigsys_stays_whatever_the_upper_half() -> None:
    bpf, number = load_policy("vmm").bpf, syscall_number("rt_sigaction")
    assert {simulate(bpf, number, (high | 31,)) for high in (0, *HIGH_HALVES)} == {TRAP}
