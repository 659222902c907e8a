# SPDX-License-Identifier: BSD-3-Clause
"""``python -m seccomp`` prints the table of SECURITY.md; with names of policies, their rules."""

from __future__ import annotations

import os
import sys

from seccomp.loader import count, describe, load_policy, policy_path
from sys_util.typing import Final

# How many system calls crosvm's policy for the same device allows on x86-64, including the common
# ones.
CROSVM_COUNTS: Final = {
    "balloon_device": "69",
    "block_device": "82",
    "console_device": "71",
    "forge": "none",
    "net_device": "69",
    "rng_device": "70",
    "vhost_net_device": "69",
    "vhost_vsock_device": "70",
    "mem_device": "none of its own",
    "control": "none: its main process serves clients",
    "control_api": "none",
    "file_parser": "none: its main process reads kernels",
    "line_relay": "none",
    "opener": "none: its main process opens files",
    "vcpu": "none",
    "vmm": "none: crosvm's main process has no filter",
    "vmm_memory": "none",
    "vmm_memory_reboot": "none",
    "vmm_reboot": "none",
    "vsock_broker": "none",
    "vsock_device": "70, for the kernel's vsock",
    "warden": "none: its main process forks",
    "warden_sealed": "none",
    "warden_vsock": "none",
}


def policy_names() -> list[str]:
    """Return the policies of this machine's architecture, but not those that are only included."""
    folder = os.path.dirname(policy_path("vmm"))
    stems = (os.path.splitext(name) for name in sorted(os.listdir(folder)))
    return [stem for stem, end in stems if end == ".policy" and not stem.startswith("common")]


def table() -> list[str]:
    """Return the table's lines."""
    rows = [
        f"| {name} | {count(load_policy(name))} | {CROSVM_COUNTS.get(name, '')} |"
        for name in policy_names()
    ]
    return ["| policy | ours | crosvm |", "|---|---|---|", *rows]


def rules(name: str) -> list[str]:
    """Return a policy's rules, one line for each system call."""
    return [f"{syscall}: {rule}" for syscall, rule in describe(load_policy(name))]


def main() -> None:
    """Print the rules of the policies that are named, or else the table."""
    lines = [line for name in sys.argv[1:] for line in rules(name)] or table()
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
