# SPDX-License-Identifier: BSD-3-Clause
"""A completion script for bash, made from the tables that the parser uses."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import load_command
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crosvm_py.cli.grammar.command import CommandTable
    from crosvm_py.cli.grammar.options import Option

# The script looks for the command in the words before the one that is completed. If that begins
# with a dash, it offers the command's options. bash completes file names itself (complete -o
# default).
_SCRIPT: Final = """\
_crosvm() {
    local current=${COMP_WORDS[COMP_CWORD]} command= word words=
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case " $(_crosvm_words "$command") " in
            *" $word "*) [[ $word = -* ]] || command="${command:+$command }$word" ;;
        esac
    done
    for word in $(_crosvm_words "$command"); do
        [[ $current != -* && $word = -* ]] || words="$words $word"
    done
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
_crosvm_words() {
    case $1 in
%s
    esac
}
complete -o default -F _crosvm crosvm
"""


def bash_completion(commands: CommandTable, options: Sequence[Option[object]]) -> str:
    """Return a script to be sourced by bash."""
    first = _case("", [*_names(options), "help", *commands])
    return _SCRIPT % "\n".join((first, _case("help", commands), *_cases(commands, "")))


def _cases(commands: CommandTable, group: str) -> Iterator[str]:
    for name, place in commands.items():
        command = load_command(place)
        yield _case(group + name, [*_names(command.options), *command.subcommands])
        yield from _cases(command.subcommands, f"{group}{name} ")


def _case(command: str, words: Iterable[str]) -> str:
    return f"        '{command}') echo '{' '.join(words)}' ;;"


def _names(options: Iterable[Option[object]]) -> list[str]:
    return [name for option in options for name in option.names] + ["-h", "--help"]
