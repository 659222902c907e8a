# SPDX-License-Identifier: BSD-3-Clause
"""Command lines as tables of options.

argparse has no notion of the order in which different options came, costs 6 ms of start-up and
accepts prefixes of names. What crosvm's grammar needs is little: ``--name VALUE`` and ``-n VALUE``,
both also with ``=``; ``-`` and ``_`` alike in names; options and positional arguments mixed; ``--``
before an argument that starts with a dash; an option once, unless it may be repeated.
"""

from __future__ import annotations

from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from crosvm_py.cli.grammar.keyvalue import Field

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Option(Generic[T_co]):
    """One option: its spellings, the metavar of its value (none for a switch), how it is read.

    ``read`` gets the main spelling, for its messages, and the text of the value.
    """

    __slots__ = ("fields", "help", "metavar", "names", "read", "repeatable")

    def __init__(
        self,
        names: str,
        metavar: str,
        help: str,  # noqa: A002 - the word for it in every option table
        read: Callable[[str, str], T_co],
        *,
        repeatable: bool = False,
        fields: Sequence[Field[object]] = (),
    ) -> None:
        self.names = tuple(names.split())
        self.metavar = metavar
        self.help = help
        self.read = read
        self.repeatable = repeatable
        self.fields = fields

    @property
    def name(self) -> str:
        """The long spelling, as messages show it."""
        return self.names[-1]


def switch(names: str, help: str) -> Option[bool]:  # noqa: A002
    """Return an option without a value."""
    return Option(names, "", help, lambda _option, _text: True)


def text_option(
    names: str,
    metavar: str,
    help: str,  # noqa: A002
    *,
    repeatable: bool = False,
) -> Option[str]:
    """Return an option whose value is text; only a repeatable one may be empty."""
    read = _read_any if repeatable else _read_text
    return Option(names, metavar, help, read, repeatable=repeatable)


def _read_any(_option: str, text: str) -> str:
    return text


def _read_text(option: str, text: str) -> str:
    if not text:
        raise UsageError(f"{option}: the value is empty")
    return text


class Positional(NamedTuple):
    """The arguments without a dash: what they are called and how many there may be.

    With ``rest``, words of another command follow after ``--``; that is what they are called.
    """

    metavar: str
    help: str
    at_least: int = 1
    at_most: int = 1
    rest: str = ""


NO_ARGUMENTS = Positional("", "", 0, 0)


class Arguments:
    """A command line that was read: options in their order, arguments, and what is left over.

    ``rest`` are the words from the first argument on, or those of ``Positional.rest``.
    """

    def __init__(self) -> None:
        self._given: list[tuple[Option[object], object]] = []
        self.positional: list[str] = []
        self.rest: list[str] = []
        self.help_wanted = False

    def add(self, option: Option[T], value: T) -> None:
        """Note that ``option`` was given."""
        self._given.append((option, value))

    def has(self, option: Option[object]) -> bool:
        """Return whether ``option`` was given."""
        return any(given is option for given, _ in self._given)

    def every(self, *options: Option[T]) -> Iterator[T]:
        """Return the values of all of ``options``, in the order of the command line."""
        for given, value in self._given:
            if given in options:
                # add() stored it under its own option, whose read() made it.
                yield cast("T", value)

    def get(self, option: Option[T]) -> T | None:
        """Return the value of an option that is given at most once."""
        return next(self.every(option), None)


def parse(
    argv: Sequence[str],
    options: Sequence[Option[object]],
    positional: Positional = NO_ARGUMENTS,
    *,
    stop_at_argument: bool = False,
) -> Arguments:
    """Read a command line; with ``stop_at_argument`` only up to the first argument (a command).

    Stops at ``--help``, before anything can be missing.

    Raises:
        UsageError: with the option and what is wrong.
    """
    by_name = {name: option for option in options for name in option.names}
    arguments = Arguments()
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help"):
            arguments.help_wanted = True
            return arguments
        if word == "--" and positional.rest:
            arguments.rest += words
        elif word == "--":
            arguments.positional += words
        elif word.startswith("-") and word != "-":
            _read_option(word, words, by_name, arguments)
        elif stop_at_argument:
            arguments.rest = [word, *words]
        else:
            arguments.positional.append(word)
    _check_count(arguments.positional, arguments.rest, positional)
    return arguments


def _read_option(
    word: str, words: Iterator[str], by_name: dict[str, Option[object]], arguments: Arguments
) -> None:
    name, equals, text = word.partition("=")
    if name.startswith("--"):
        name = "--" + name[2:].replace("_", "-")
    option = by_name.get(name)
    if option is None:
        raise UsageError(f"unknown option {word.partition('=')[0]}{suggestion(name, by_name)}")
    if arguments.has(option) and not option.repeatable:
        raise UsageError(f"{option.name}: given twice")
    if not option.metavar:
        if equals:
            raise UsageError(f"{option.name}: takes no value, got {text!r}")
        arguments.add(option, True)
        return
    value = text if equals else next(words, None)
    if value is None:
        raise UsageError(f"{option.name}: a value is missing ({option.metavar})")
    arguments.add(option, option.read(option.name, value))


def _check_count(given: Sequence[str], rest: Sequence[str], wanted: Positional) -> None:
    if len(given) < wanted.at_least:
        raise UsageError(f"{wanted.metavar} is missing")
    if len(given) > wanted.at_most:
        raise UsageError(f"unexpected argument {given[wanted.at_most]!r}")
    if "" in given:
        raise UsageError(f"{wanted.metavar}: the value is empty")
    if wanted.rest and not rest:
        raise UsageError(f"-- {wanted.rest} is missing")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return a hint at a known word that is close to a mistyped one, or nothing."""
    import difflib

    by_letters = {name.lstrip("-"): name for name in known}
    close = difflib.get_close_matches(word.lstrip("-"), by_letters, 1)
    return f", did you mean {by_letters[close[0]]}?" if close else ""
