# SPDX-License-Identifier: BSD-3-Clause
"""Parse command lines, described by tables of options.

We do not use argparse: it does not keep the order of different options, costs 6 ms at start-up, and
accepts prefixes of names. crosvm's grammar is simple: ``--name VALUE`` and ``-n VALUE``, both also
with ``=``; ``-`` and ``_`` are the same in names; options and positional arguments can be mixed;
``--`` comes before an argument that starts with a dash; an option is given once, unless it is
repeatable.
"""

from __future__ import annotations

from crosvm_py.cli.grammar.suggest import suggestion
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crosvm_py.cli.grammar.keyvalue import Field

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class UnknownOptionError(UsageError):
    """There is no option called ``name`` for this command."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"unknown option {name}{hint}")
        self.name = name


class Option(Generic[T_co]):
    """One option: its spellings, the metavar of its value ("" for a switch), how it is parsed.

    ``read`` gets the long spelling, for its messages, and the text of the value. ``default`` is the
    default value as the user would type it; only ``--help`` uses it. ``fields`` are the keys of a
    ``key=value`` text.
    """

    __slots__ = ("default", "fields", "help", "metavar", "names", "read", "repeatable")

    def __init__(
        self,
        names: str,
        metavar: str,
        help: str,  # noqa: A002 - the word for it in every option table
        read: Callable[[str, str], T_co],
        *,
        default: str = "",
        repeatable: bool = False,
        fields: Sequence[Field[object]] = (),
    ) -> None:
        self.names = tuple(names.split())
        self.metavar = metavar
        self.help = help
        self.read = read
        self.default = default
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
    default: str = "",
    repeatable: bool = False,
) -> Option[str]:
    """Return an option whose value is text, which may be empty only if it is repeatable."""
    read = _read_any if repeatable else _read_text
    return Option(names, metavar, help, read, default=default, repeatable=repeatable)


def _read_any(_option: str, text: str) -> str:
    return text


def _read_text(option: str, text: str) -> str:
    if not text:
        raise UsageError(f"{option}: the value is empty")
    return text


class Positional(NamedTuple):
    """A positional argument: its name, its description, and how many of it are allowed.

    With ``behind_dashes`` it is the words of another command, which follow ``--``; it is then the
    last argument of the command line.
    """

    metavar: str
    help: str
    at_least: int = 1
    at_most: int = 1
    behind_dashes: bool = False


NO_ARGUMENTS: tuple[Positional, ...] = ()


class OptionGroup(NamedTuple):
    """Options on one topic, as ``--help`` shows them, with examples and a note."""

    title: str
    options: tuple[Option[object], ...]
    examples: tuple[str, ...] = ()
    note: str = ""


class Arguments:
    """A parsed command line: options in their order, positional arguments, and the rest.

    ``rest`` are the words from the command's name on, or those after ``--``.
    """

    def __init__(self) -> None:
        self._given: list[tuple[Option[object], object]] = []
        self.positional: list[str] = []
        self.rest: list[str] = []
        self.help_wanted = False

    def add(self, option: Option[T], value: T) -> None:
        """Record that ``option`` was given."""
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
    positional: Sequence[Positional] = NO_ARGUMENTS,
    *,
    stop_at_argument: bool = False,
) -> Arguments:
    """Parse a command line; with ``stop_at_argument`` only up to the first argument, a command.

    ``--help`` stops the parser, so missing arguments are then no error.

    Raises:
        UsageError: names the option and what is wrong with it.
    """
    by_name = {name: option for option in options for name in option.names}
    has_rest = any(argument.behind_dashes for argument in positional)
    arguments = Arguments()
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help"):
            arguments.help_wanted = True
            return arguments
        if word == "--" and has_rest:
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
        raise UnknownOptionError(word.partition("=")[0], _nearest(name, by_name))
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


def _nearest(name: str, by_name: dict[str, Option[object]]) -> str:
    """Return a hint on which option an unknown one may have been meant to be, or ""."""
    short = by_name.get(name[:2])
    if short is not None and short.metavar and not name.startswith("--"):
        return f"; the value of {name[:2]} is a word of its own: {name[:2]} {name[2:]}"
    return suggestion(name, by_name)


def _check_count(given: Sequence[str], rest: Sequence[str], wanted: Sequence[Positional]) -> None:
    plain = [argument for argument in wanted if not argument.behind_dashes]
    needed = [argument.metavar for argument in plain for _ in range(argument.at_least)]
    if len(given) < len(needed):
        raise UsageError(f"{needed[len(given)]} is missing")
    at_most = sum(argument.at_most for argument in plain)
    if len(given) > at_most:
        there = f"; {plain[0].metavar} is {given[0]!r}" if at_most == 1 else ""
        raise UsageError(f"unexpected argument {given[at_most]!r}{there}")
    if "" in given:
        name = _names(plain, len(given))[given.index("")]
        raise UsageError(f"{name}: the value is empty")
    if len(plain) < len(wanted) and not rest:
        raise UsageError(f"-- {wanted[-1].metavar} is missing")


def _names(arguments: Sequence[Positional], count: int) -> list[str]:
    """Return the metavar of each of ``count`` words; arguments take as many words as they can."""
    names: list[str] = []
    spare = count - sum(argument.at_least for argument in arguments)
    for argument in arguments:
        extra = min(spare, argument.at_most - argument.at_least)
        spare -= extra
        names += [argument.metavar] * (argument.at_least + extra)
    return names
