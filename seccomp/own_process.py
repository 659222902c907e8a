# SPDX-License-Identifier: BSD-3-Clause
"""Make a compiled policy allow signals only to the process that loads it.

raise(3), abort(3) and pthread_kill(3) call tgkill(2), whose first argument is the id of a process.
A policy cannot contain that id, because it is known only when the process runs. So a policy that
allows tgkill(2) would let the process signal every process of its user. Here we put a check of the
id before the compiled program.
"""

from __future__ import annotations

import struct

from seccomp.actions import SECCOMP_RET_LOG, SECCOMP_RET_TRAP
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp.loader import Policy

# jail.plan.load_filter loads these policies, each with the check before it.
_BOUND: Final = frozenset(
    {
        *("forge", "vcpu", "vmm", "vmm_memory", "vmm_memory_reboot", "vmm_reboot"),
        *("warden", "warden_sealed", "warden_vsock"),
    }
)
_CALL: Final = "tgkill"
# The number of tgkill(2). Importing the whole table of calls would make every start slower.
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NR, _ARG0_LOW, _ARG0_HIGH = 0, 16, 20  # offsets in struct seccomp_data; little-endian


def is_bound(policy_name: str, call: str) -> bool:
    """Return whether a run allows this call only for the process itself, under this policy."""
    return policy_name in _BOUND and call == _CALL


def signals_to(pid: int, policy: Policy) -> bytes:
    """Return the program of ``policy`` after a check that denies tgkill(2) for others than ``pid``.

    The policy decides about every other call, also one of a foreign ABI, and about tgkill(2) for
    ``pid``. Jumps in BPF are relative, so the policy's program can follow unchanged.
    """
    denied = SECCOMP_RET_LOG if policy.log_failures else SECCOMP_RET_TRAP
    lines = (
        (_LOAD, 0, 0, _NR),
        (_JUMP_EQUAL, 0, 5, _TGKILL[policy.arch]),
        (_LOAD, 0, 0, _ARG0_LOW),
        (_JUMP_EQUAL, 0, 2, pid),
        (_LOAD, 0, 0, _ARG0_HIGH),
        (_JUMP_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, denied),
    )
    return b"".join(struct.pack("=HBBI", *line) for line in lines) + policy.bpf
