# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm debug``: the group of commands for debugging."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import command_group
from sys_util.typing import Final

DEBUG: Final = command_group(
    "debug",
    "look into a VM that runs",
    {"dump": "crosvm_py.cli.commands.debug_dump:DUMP"},
)
