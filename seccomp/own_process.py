# SPDX-License-Identifier: BSD-3-Clause
"""Bind a compiled policy to the process that loads it: it signals nobody else.

The id of a process is known only when it runs, so that no policy can name it. raise(3), abort(3)
and pthread_kill(3) name a process and a thread to the kernel (tgkill(2)), and without this a filter
that allows them for oneself allows them for every process of the user.
"""

from __future__ import annotations

import struct

from seccomp.actions import SECCOMP_RET_LOG, SECCOMP_RET_TRAP
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp.loader import Policy

# The policies that are loaded so, which jail.plan.load_filter does.
_BOUND: Final = frozenset({"forge", "vcpu", "vmm", "warden", "warden_vsock"})
_CALL: Final = "tgkill"
# Known here, so that no start waits for a whole table.
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NR, _ARG0_LOW, _ARG0_HIGH = 0, 16, 20  # offsets in struct seccomp_data; little-endian


def is_bound(policy_name: str, call: str) -> bool:
    """Tell whether a run allows a call of this policy for the process itself only."""
    return policy_name in _BOUND and call == _CALL


def signals_to(pid: int, policy: Policy) -> bytes:
    """Return the program of ``policy`` that denies tgkill(2) for any process but ``pid``.

    Every other call, and this one where it is for ``pid``, is judged by the policy. Jumps of BPF
    are relative, so that its program can follow as it is. Foreign ABIs are its business, too.
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
