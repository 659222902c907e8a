# SPDX-License-Identifier: BSD-3-Clause
"""The walls around devices, on the command line."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import switch, text_option
from sys_util.typing import Final

POLICY_DIR: Final = text_option(
    "--seccomp-policy-dir", "DIR", "take the seccomp policies from here, not from the package"
)
LOG_FAILURES: Final = switch(
    "--seccomp-log-failures", "log denied system calls instead of ending the device (unsafe)"
)
CGROUP: Final = text_option(
    "--cgroup", "PATH", "limit the devices in groups of cgroup v2 below this one; none: in none"
)
NO_SANDBOX: Final = switch("--disable-sandbox", "run the devices unconfined (unsafe)")
