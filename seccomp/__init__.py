# SPDX-License-Identifier: BSD-3-Clause
"""Seccomp policies in minijail's grammar, and the code that compiles them to BPF programs."""

from seccomp.errors import PolicyError
from seccomp.loader import Policy, count, describe, keep_policy, load_policy
from seccomp.syscalls import syscall_name, syscall_number

__all__ = [
    "Policy",
    "PolicyError",
    "count",
    "describe",
    "keep_policy",
    "load_policy",
    "syscall_name",
    "syscall_number",
]
