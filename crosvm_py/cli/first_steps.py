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
    FirstStep("crosvm guest shell", "boot a throw-away guest, with a shell and a network"),
    FirstStep(
        "crosvm guest make debian -o work ; crosvm run work",
        "make a guest from Debian packages and boot it; its console is this terminal, and Ctrl-A x "
        "leaves it",
    ),
    FirstStep("crosvm run --rwroot rootfs.img vmlinux", "boot a kernel and a disk of your own"),
    FirstStep(
        "crosvm run -s vm.sock … ; crosvm devices vm.sock ; crosvm stop vm.sock",
        "look at a guest that runs, and end it",
    ),
    FirstStep("crosvm help run", "see every option of run, by topic and with examples"),
)
