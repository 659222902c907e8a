# SPDX-License-Identifier: BSD-3-Clause
"""Options of the sandbox."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import OptionGroup, switch, text_option
from sys_util.typing import Final

POLICY_DIR: Final = text_option(
    "--seccomp-policy-dir", "DIR", "use the seccomp policies in DIR, not those that are built in"
)
LOG_FAILURES: Final = switch(
    "--seccomp-log-failures",
    "unsafe: log system calls that a policy denies, instead of ending the device",
)
CGROUP: Final = text_option(
    "--cgroup",
    "PATH|none",
    "limit what the devices take of the host in groups of cgroup v2 below PATH; none: in no "
    "group (default: below a group that is ours, where there is one)",
)
NO_SANDBOX: Final = switch(
    "--disable-sandbox", "unsafe: run the devices without a jail and without seccomp policies"
)
MULTIPROCESS: Final = switch(
    "-u --multiprocess", "has no effect: every device always has a process of its own"
)

GROUP: Final = OptionGroup(
    "Sandbox",
    (POLICY_DIR, LOG_FAILURES, CGROUP, NO_SANDBOX, MULTIPROCESS),
    examples=("crosvm run --seccomp-policy-dir policies -r rootfs.img vmlinux",),
)
