# SPDX-License-Identifier: BSD-3-Clause
"""Names and numbers of system calls, without libseccomp, so that every process can use them."""

from __future__ import annotations

import os

from seccomp.errors import PolicyError
from sys_util.typing import Final, NamedTuple

# <linux/audit.h>
AUDIT_ARCH_X86_64: Final = 0xC000003E
AUDIT_ARCH_I386: Final = 0x40000003
AUDIT_ARCH_AARCH64: Final = 0xC00000B7
AUDIT_ARCH_ARM: Final = 0x40000028

X32_SYSCALL_BIT: Final = 0x40000000
ARCHITECTURES: Final = ("x86_64", "aarch64")

_MACHINE: Final = os.uname().machine  # asked at import: later a filter may deny uname(2)


class Arch(NamedTuple):
    """An architecture. ``name`` is also the folder of its policies.

    ``foreign`` has a call of each other ABI that its kernels serve: AUDIT_ARCH_* and the number.
    """

    name: str
    audit: int
    syscalls: dict[str, int]
    foreign: tuple[tuple[int, int], ...] = ()


def machine_arch() -> str:
    """Return the architecture of this machine as uname(2) calls it."""
    return _MACHINE


def get_arch(name: str) -> Arch:
    """Return the description of an architecture.

    Raises:
        PolicyError: there are no tables for it.
    """
    if name == "x86_64":
        from seccomp.syscalls_x86_64 import SYSCALLS

        foreign = ((AUDIT_ARCH_I386, 0), (AUDIT_ARCH_X86_64, X32_SYSCALL_BIT))
        return Arch(name, AUDIT_ARCH_X86_64, SYSCALLS, foreign)
    if name == "aarch64":
        from seccomp.syscalls_aarch64 import SYSCALLS

        return Arch(name, AUDIT_ARCH_AARCH64, SYSCALLS, ((AUDIT_ARCH_ARM, 0),))
    known = ", ".join(ARCHITECTURES)
    raise PolicyError(f"no seccomp tables for architecture '{name}'; known: {known}")


def get_constants(name: str) -> dict[str, int]:
    """Return the constants that policies of an architecture may name, from its C headers.

    Raises:
        PolicyError: there are no tables for it.
    """
    if get_arch(name).audit == AUDIT_ARCH_AARCH64:
        from seccomp.constants_aarch64 import CONSTANTS
    else:
        from seccomp.constants_x86_64 import CONSTANTS
    return CONSTANTS


def syscall_number(name: str, arch: str | None = None) -> int:
    """Return the number of a system call.

    Raises:
        PolicyError: the architecture has no system call of that name.
    """
    number = get_arch(arch or machine_arch()).syscalls.get(name)
    if number is None:
        raise PolicyError(f"unknown system call '{name}'")
    return number


def syscall_name(number: int, arch: str | None = None) -> str:
    """Return the name of a system call, or ``syscall_NUMBER`` if the table does not have it."""
    for name, known in get_arch(arch or machine_arch()).syscalls.items():
        if known == number:
            return name
    return f"syscall_{number}"
