# SPDX-License-Identifier: BSD-3-Clause
"""The completion scripts of all programs for all shells."""

from __future__ import annotations

from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS
from crosvm_py.cli.grammar.completion import SHELLS, Word, words_of
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.completion import WordTable

# Where each shell looks for them, below a prefix.
PLACES: Final = {
    "bash": "share/bash-completion/completions/{}",
    "zsh": "share/zsh/site-functions/_{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
}


def program_words(program: str) -> WordTable:
    """Return the words of one program."""
    if program == "crosvm":
        return words_of(COMMANDS, GLOBAL_OPTIONS)
    from crosvm_py.cloud_hypervisor import remote
    from crosvm_py.vm_config.option_help import options_with_help

    if program == "cloud-hypervisor":
        return {"": [Word(option.name, option.text) for option in options_with_help()]}
    options = (Word("--api-socket", "the socket of the VMM"), Word("--help", "print help"))
    calls = [Word(name, command.about) for name, command in remote.COMMANDS.items()]
    return {"": [*options, *calls]}


def completions(program: str) -> dict[str, str]:
    """Return the scripts of one program by their places."""
    table = program_words(program)
    return {PLACES[shell].format(program): make(program, table) for shell, make in SHELLS.items()}
