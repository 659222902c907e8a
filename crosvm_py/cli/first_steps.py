# SPDX-License-Identifier: BSD-3-Clause
"""The introduction for new users in ``crosvm --help``."""

from __future__ import annotations

from crosvm_py.cli.grammar.help import FirstStep
from sys_util.typing import Final

ABOUT: Final = (
    "crosvm boots operating systems that you do not trust on Linux KVM. Each device of a guest is "
    "a process of its own, in a jail of its own."
)
FIRST_STEPS: Final = (
    FirstStep("crosvm doctor", "see whether this host can run guests, and what to do if not"),
    FirstStep(
        "crosvm run --rwroot rootfs.img vmlinux",
        "boot a guest whose console is this terminal; Ctrl-A x leaves it",
    ),
    FirstStep(
        "crosvm run --net user --rwroot rootfs.img vmlinux",
        "the same with a network, which needs no privileges",
    ),
    FirstStep(
        "crosvm run -s vm.sock … ; crosvm devices vm.sock ; crosvm stop vm.sock",
        "look at a guest that runs, and end it",
    ),
    FirstStep("crosvm help run", "see every option of run, by topic and with examples"),
)
