# SPDX-License-Identifier: BSD-3-Clause
"""Completion scripts for bash, zsh and fish, made from the tables that the parser uses.

A script looks for the command in the words before the one that is completed. If that begins with a
dash, it offers the command's options, otherwise sub-commands and files.
"""

from __future__ import annotations

from crosvm_py.cli.grammar.command import load_command
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crosvm_py.cli.grammar.command import CommandTable
    from crosvm_py.cli.grammar.options import Option


class Word(NamedTuple):
    """A word that may be typed, and what it is for; that may be empty."""

    text: str
    about: str = ""


# The words that may follow each command, as "guest make"; "" is before any command.
WordTable: TypeAlias = "Mapping[str, Sequence[Word]]"

_HELP: Final = (Word("-h", "print help"), Word("--help", "print help"))

# bash completes file names itself (complete -o default).
_BASH: Final = """\
_NAME() {
    local current=${COMP_WORDS[COMP_CWORD]} command= word words=
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case " $(_NAME_words "$command") " in
            *" $word "*) [[ $word = -* ]] || command="${command:+$command }$word" ;;
        esac
    done
    for word in $(_NAME_words "$command"); do
        [[ $current != -* && $word = -* ]] || words="$words $word"
    done
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
_NAME_words() {
    case $1 in
CASES
    esac
}
complete -o default -F _NAME PROGRAM
"""

_ZSH: Final = """\
#compdef PROGRAM
_NAME_words() {
    reply=()
    case $1 in
CASES
    esac
}
_NAME() {
    local command= word
    local -a reply options commands
    for word in "${(@)words[2,CURRENT-1]}"; do
        _NAME_words "$command"
        if [[ $word != -* && -n "${(M)reply[@]:#$word:*}" ]]; then
            command="${command:+$command }$word"
        fi
    done
    _NAME_words "$command"
    options=("${(@M)reply:#-*}")
    commands=("${(@)reply:#-*}")
    if [[ $PREFIX == -* ]]; then
        _describe -o option options
    else
        (( $#commands )) && _describe command commands
        _files
    fi
}
if [ "$funcstack[1]" = "_NAME" ]; then
    _NAME "$@"
else
    compdef _NAME PROGRAM
fi
"""

_FISH: Final = """\
function __NAME_command
    set -l command
    for word in (commandline -opc)[2..-1]
        set -l longer (string trim -- "$command $word")
        contains -- $longer COMMANDS; and set command $longer
    end
    echo "$command"
end
function __NAME_in
    test (__NAME_command) = "$argv"
end
CASES
"""


def words_of(commands: CommandTable, options: Sequence[Option[object]]) -> WordTable:
    """Return the words of a program with commands and options before them."""
    table: dict[str, Sequence[Word]] = {}
    names = [Word(name, load_command(place).summary) for name, place in commands.items()]
    table[""] = [*_names(options), Word("help", "tell more of one command"), *names]
    table["help"] = names
    table |= _below(commands, "")
    return table


def _below(commands: CommandTable, group: str) -> Iterator[tuple[str, Sequence[Word]]]:
    for name, place in commands.items():
        command = load_command(place)
        inner = command.subcommands
        subs = [Word(each, load_command(inner[each]).summary) for each in inner]
        yield group + name, [*_names(command.options), *subs]
        yield from _below(inner, f"{group}{name} ")


def _names(options: Sequence[Option[object]]) -> list[Word]:
    return [*(Word(name, each.help) for each in options for name in each.names), *_HELP]


def bash_completion(program: str, table: WordTable) -> str:
    """Return a script to be sourced by bash."""
    cases = (
        f"        {_quoted(command)}) echo {_quoted(' '.join(word.text for word in words))} ;;"
        for command, words in table.items()
    )
    return _filled(_BASH, program, cases)


def zsh_completion(program: str, table: WordTable) -> str:
    """Return a function file for zsh, which may also be sourced."""

    def case(command: str, words: Sequence[Word]) -> str:
        rows = " ".join(_quoted(f"{word.text}:{_short(word.about)}") for word in words)
        return f"        {_quoted(command)}) reply=({rows}) ;;"

    return _filled(_ZSH, program, (case(*row) for row in table.items()))


def fish_completion(program: str, table: WordTable) -> str:
    """Return a script to be sourced by fish."""

    def line(command: str, word: Word) -> str:
        where = _fish_quoted(f"__{_function(program)}_in {command}".rstrip())
        text, about = _fish_quoted(word.text), _fish_quoted(_short(word.about))
        name = _fish_quoted(word.text.lstrip("-"))
        if not word.text.startswith("-"):
            what = f"-a {text}"
        elif word.text.startswith("--"):
            what = f"-l {name}"
        else:
            what = f"-s {name}"
        return f"complete -c {program} -n {where} {what} -d {about}"

    lines = (line(command, word) for command, words in table.items() for word in words)
    commands = " ".join(_fish_quoted(command) for command in table if command)
    return _filled(_FISH, program, lines).replace("COMMANDS", commands or "''")


SHELLS: Final = {"bash": bash_completion, "zsh": zsh_completion, "fish": fish_completion}


def _filled(script: str, program: str, cases: Iterator[str]) -> str:
    text = script.replace("NAME", _function(program)).replace("PROGRAM", program)
    return text.replace("CASES", "\n".join(cases))


def _function(program: str) -> str:
    return program.replace("-", "_")


def _quoted(text: str) -> str:
    quote = "'\\''"
    return f"'{text.replace(chr(39), quote)}'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _short(about: str) -> str:
    """Return the first part of a help text: there is one line for a word."""
    return " ".join(about.split()).partition("; ")[0].partition(": ")[0][:72]
