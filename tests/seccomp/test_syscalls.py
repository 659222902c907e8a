# SPDX-License-Identifier: BSD-3-Clause
"""The tables of numbers and constants against libseccomp, Python and the kernel's headers."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import socket

import pyseccomp
import pytest

from seccomp.constants_x86_64 import CONSTANTS
from seccomp.errors import PolicyError
from seccomp.syscalls import get_arch, syscall_name, syscall_number
from seccomp.syscalls_x86_64 import SYSCALLS
from sys_util import _kvm

UNKNOWN = -1  # what libseccomp 2.5.4 says of calls newer than itself


def test_numbers_are_libseccomps() -> None:
    known = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, name) for name in SYSCALLS}
    different = {
        name: number for name, number in known.items() if number not in (SYSCALLS[name], UNKNOWN)
    }
    assert different == {}
    assert sum(number != UNKNOWN for number in known.values()) > 350


def test_numbers_are_unique() -> None:
    assert len(set(SYSCALLS.values())) == len(SYSCALLS)


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
