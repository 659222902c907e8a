# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy``: the group of commands for seccomp policies."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import command_group
from sys_util.typing import Final

POLICY: Final = command_group(
    "policy",
    "record, explain and try out seccomp policies",
    {
        "record": "crosvm_py.cli.commands.policy_record:RECORD",
        "show": "crosvm_py.cli.commands.policy_show:SHOW",
        "simulate": "crosvm_py.cli.commands.policy_simulate:SIMULATE",
    },
)
