# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy``: the group of the commands about seccomp policies."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import NO_ARGUMENTS
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _none(_arguments: Arguments, _settings: GlobalSettings) -> int:
    raise UsageError("policy: what of it? record, show or simulate")


POLICY: Final = Command(
    "policy",
    "record, explain and try out seccomp policies",
    (),
    NO_ARGUMENTS,
    _none,
    {
        "record": "crosvm_py.cli.commands.policy_record:RECORD",
        "show": "crosvm_py.cli.commands.policy_show:SHOW",
        "simulate": "crosvm_py.cli.commands.policy_simulate:SIMULATE",
    },
)
