# SPDX-License-Identifier: BSD-3-Clause
"""Compare the tables of numbers and constants with libseccomp, Python and the kernel's headers."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import socket

import pyseccomp
import pytest

from kvm import _kvm
from seccomp.constants_x86_64 import CONSTANTS
from seccomp.errors import PolicyError
from seccomp.syscalls import (
    ARCHITECTURES,
    get_arch,
    get_constants,
    syscall_name,
    syscall_number,
)

UNKNOWN = -1  # the answer of libseccomp 2.5.4 for calls that are newer than itself


@pytest.mark.parametrize(("arch", "least"), [("x86_64", 350), ("aarch64", 295)])
def test_numbers_are_libseccomps(arch: str, least: int) -> None:
    numbers, audit = get_arch(arch).syscalls, get_arch(arch).audit
    known = {name: pyseccomp.resolve_syscall(audit, name) for name in numbers}
    different = {
        name: number for name, number in known.items() if number not in (numbers[name], UNKNOWN)
    }
    assert different == {}
    assert sum(number != UNKNOWN for number in known.values()) > least


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_numbers_are_unique(arch: str) -> None:
    numbers = get_arch(arch).syscalls
    assert len(set(numbers.values())) == len(numbers)


def test_calls_since_linux_5_1_have_one_number_everywhere() -> None:
    ours, other = (get_arch(arch).syscalls for arch in ARCHITECTURES)
    since_linux_5_1 = {name: number for name, number in ours.items() if number >= 424}
    assert {name: other.get(name, number) for name, number in since_linux_5_1.items()} == (
        since_linux_5_1
    )


@pytest.mark.parametrize("module", [errno, fcntl, mmap, os, signal, socket])
def test_constants_are_pythons(module: object) -> None:
    shared = [name for name in CONSTANTS if isinstance(getattr(module, name, None), int)]
    assert {name: int(getattr(module, name)) for name in shared} == {
        name: CONSTANTS[name] for name in shared
    }
    assert len(shared) >= 10


def test_kvm_constants_are_the_headers() -> None:
    names = [name for name in dir(_kvm.lib) if name in CONSTANTS]
    assert {name: getattr(_kvm.lib, name) for name in names} == {
        name: CONSTANTS[name] for name in names
    }
    assert "KVM_RUN" in names


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # _IO, _IOW and _IOWR of 0xAE with the sizes of <asm/kvm.h>'s structures
        pytest.param("KVM_RUN", 0xAE80, id="run"),
        pytest.param("KVM_GET_ONE_REG", 0x4010AEAB, id="get-one-reg"),
        pytest.param("KVM_SET_ONE_REG", 0x4010AEAC, id="set-one-reg"),
        pytest.param("KVM_SET_DEVICE_ATTR", 0x4018AEE1, id="set-device-attr"),
        pytest.param("KVM_ARM_VCPU_INIT", 0x4020AEAE, id="vcpu-init"),
        pytest.param("KVM_SET_VCPU_EVENTS", 0x4040AEA0, id="vcpu-events"),
        # other bits than on x86-64
        pytest.param("O_DIRECTORY", 0x4000, id="directory"),
        pytest.param("O_NOFOLLOW", 0x8000, id="nofollow"),
        pytest.param("O_DIRECT", 0x10000, id="direct"),
        pytest.param("PROT_BTI", 0x10, id="bti"),
    ],
)
def test_constant_of_arm_is_arms(name: str, value: int) -> None:
    assert get_constants("aarch64")[name] == value


def test_constants_of_x86_are_not_arms() -> None:
    assert not {"MAP_32BIT", "KVM_SET_SREGS2", "ARCH_SET_FS"} & get_constants("aarch64").keys()


def test_constants_that_both_have_differ_in_few_families() -> None:
    x86, arm = (get_constants(arch) for arch in ARCHITECTURES)
    different = {name.split("_")[0] for name in x86.keys() & arm.keys() if x86[name] != arm[name]}
    assert different == {"KVM", "O", "WCHAR"}


def test_name_and_number_are_inverse() -> None:
    assert syscall_name(syscall_number("openat", "x86_64"), "x86_64") == "openat"


def test_number_without_a_name_is_shown() -> None:
    assert syscall_name(9999, "x86_64") == "syscall_9999"


def test_unknown_name_is_refused() -> None:
    with pytest.raises(PolicyError, match="unknown system call 'foo'"):
        syscall_number("foo", "x86_64")


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(PolicyError, match="architecture 'vax'; known: x86_64, aarch64"):
        get_arch("vax")
