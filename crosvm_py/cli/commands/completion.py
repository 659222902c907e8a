# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm completion``: let the shell complete commands and options."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.grammar.suggest import suggestion
from crosvm_py.cli.output import write_out
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

_SHELLS: Final = ("bash",)


def _completion(arguments: Arguments, _settings: GlobalSettings) -> int:
    (shell,) = arguments.positional
    if shell not in _SHELLS:
        known = ", ".join(_SHELLS)
        near = suggestion(shell, _SHELLS)
        raise UsageError(f"completion: {shell!r:.40} is none of {known}{near}")
    from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS
    from crosvm_py.cli.grammar.completion import bash_completion

    write_out(bash_completion(COMMANDS, GLOBAL_OPTIONS))
    return 0


COMMAND: Final = Command(
    "completion",
    "print a script that lets the shell complete commands and options",
    (),
    (Positional("SHELL", "bash"),),
    _completion,
    examples=(". <(crosvm completion bash)",),
)
