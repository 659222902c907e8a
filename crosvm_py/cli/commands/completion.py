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


def _completion(arguments: Arguments, _settings: GlobalSettings) -> int:
    from crosvm_py.cli.grammar.completion import SHELLS, words_of

    (shell,) = arguments.positional
    if shell not in SHELLS:
        known = ", ".join(SHELLS)
        near = suggestion(shell, SHELLS)
        raise UsageError(f"completion: {shell!r:.40} is none of {known}{near}")
    from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS

    write_out(SHELLS[shell]("crosvm", words_of(COMMANDS, GLOBAL_OPTIONS)))
    return 0


COMMAND: Final = Command(
    "completion",
    "print a script that lets the shell complete commands and options",
    (),
    (Positional("SHELL", "bash, zsh or fish"),),
    _completion,
    examples=(". <(crosvm completion bash)", "crosvm completion fish | source"),
    details="An installation has these scripts, and those of cloud-hypervisor and ch-remote, below "
    "share/ where shells look for them.",
)
