# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm doctor``."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import NO_ARGUMENTS, switch
from crosvm_py.cli.output import write_out
from crosvm_py.doctor import as_json, as_text, can_run, diagnose
from crosvm_py.end_signals import reset_inherited_signals
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

JSON: Final = switch("--json", "print JSON for scripts")


def _doctor(arguments: Arguments, _settings: GlobalSettings) -> int:
    reset_inherited_signals()
    findings = diagnose()
    write_out(as_json(findings) if arguments.has(JSON) else as_text(findings))
    return 0 if can_run(findings) else 1


COMMAND: Final = Command(
    "doctor",
    "tell whether this host can run guests, and what to do",
    (JSON,),
    NO_ARGUMENTS,
    _doctor,
)
