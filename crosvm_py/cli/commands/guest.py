# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm guest``: the group of commands that make and use guests."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import command_group
from sys_util.typing import Final

GUEST: Final = command_group(
    "guest",
    "make guests from Debian packages, and use them",
    {
        "make": "crosvm_py.cli.commands.guest_make:MAKE",
        "shell": "crosvm_py.cli.commands.guest_shell:SHELL",
    },
)
