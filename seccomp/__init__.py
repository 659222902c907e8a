# SPDX-License-Identifier: BSD-3-Clause
"""Seccomp policies in minijail's grammar, and the code that compiles them to BPF programs."""

from seccomp.errors import PolicyError
from seccomp.loader import Policy, count, describe, load_policy
from seccomp.syscalls import syscall_name, syscall_number

__all__ = [
    "Policy",
    "PolicyError",
    "count",
    "describe",
    "load_policy",
    "syscall_name",
    "syscall_number",
]
