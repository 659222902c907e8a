# SPDX-License-Identifier: BSD-3-Clause
"""The ``key=value,key,…`` grammar of option values, the same as crosvm's serde_keyvalue.

    path=disk.img,ro,id="a, b",sizes=[1,0x10]

The first key may be left out, and a key without a value is true. Strings may be quoted: with ``"``,
where a backslash escapes ``"`` and itself, or with ``'``, where no character is special. Lists are
in brackets. ``-`` and ``_`` in keys are the same; unknown and repeated keys are errors. Fields are
typed, and ``--help`` prints them.
"""

from __future__ import annotations

from crosvm_py.cli.grammar.scanner import Scanner, parse_number, parse_size, typed_size
from crosvm_py.cli.grammar.suggest import suggestion
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Generic, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Field(Generic[T_co]):
    """One key: how its value is parsed, its default, and its description in ``--help``.

    ``shown`` is the default as a user would type it, or a word for it; it is empty if ``help`` says
    enough. The value of a field that ``is_text`` may be quoted.
    """

    __slots__ = ("default", "help", "is_text", "kind", "name", "names", "read", "required", "shown")

    def __init__(
        self,
        name: str,
        read: Callable[[Scanner], T_co],
        default: T_co,
        kind: str,
        help: str,  # noqa: A002 - the word for it in every option table
        *,
        shown: str = "",
        is_text: bool = False,
    ) -> None:
        self.name = name
        self.names: tuple[str, ...] = (name,)
        self.read = read
        self.default = default
        self.kind = kind
        self.help = help
        self.is_text = is_text
        self.required = False
        self.shown = shown

    def also(self, *names: str) -> Field[T_co]:
        """Accept other spellings of the key."""
        self.names += names
        return self

    def needed(self) -> Field[T_co]:
        """Make the key compulsory."""
        self.required = True
        return self


def flag(name: str, help: str, *, default: bool = False) -> Field[bool]:  # noqa: A002
    """Return a field that is true or false; only such a key may be without a value."""
    return Field(name, _read_bool, default, "true|false", help, shown=typed_bool(default))


def string(name: str, help: str, default: str | None = None) -> Field[str | None]:  # noqa: A002
    """Return a field for text; empty text needs quotes."""
    shown = default or ""
    return Field(name, Scanner.string, default, "TEXT", help, shown=shown, is_text=True)


def path(name: str, help: str) -> Field[str]:  # noqa: A002
    """Return a field for a file name, which must not be empty."""
    return Field(name, _read_path, "", "PATH", help, is_text=True)


def integer(
    name: str,
    help: str,  # noqa: A002
    default: int,
    *,
    shown: str | None = None,
) -> Field[int]:
    """Return a field for an unsigned number; ``shown`` replaces ``default`` in ``--help``."""
    shown = str(default) if shown is None else shown
    return Field(name, _read_number, default, "N", help, shown=shown)


def size(
    name: str,
    help: str,  # noqa: A002
    default: int,
    unit_bytes: int = 1,
    *,
    shown: str | None = None,
) -> Field[int]:
    """Return a field for a size in bytes, written in ``unit_bytes`` or with a suffix."""

    def read(scanner: Scanner) -> int:
        return parse_size(scanner.word(), unit_bytes)

    shown = typed_size(default) if shown is None else shown
    return Field(name, read, default, "SIZE", help, shown=shown)


def choice(name: str, help: str, options: Sequence[str], default: str) -> Field[str]:  # noqa: A002
    """Return a field for one word out of ``options``."""

    def read(scanner: Scanner) -> str:
        word = scanner.string()
        if word.replace("_", "-") not in options:
            near = suggestion(word, options)
            raise ValueError(f"must be one of {', '.join(options)}{near}")
        return word.replace("_", "-")

    return Field(name, read, default, "|".join(options), help, shown=default)


def list_of(item: Field[T]) -> Field[tuple[T, ...]]:
    """Return a field for a list in brackets, with items parsed as ``item``."""

    def read(scanner: Scanner) -> tuple[T, ...]:
        if not scanner.accept("["):
            raise ValueError("a list needs [ and ]")
        return read_items(scanner, item.read)

    return Field(item.name, read, (), f"[{item.kind},…]", item.help)


def read_items(scanner: Scanner, read: Callable[[Scanner], T]) -> tuple[T, ...]:
    """Read the items of a list after its opening bracket, and the closing bracket."""
    items: list[T] = []
    while not scanner.accept("]"):
        items.append(read(scanner))
        if not scanner.accept(",") and scanner.peek() != "]":
            raise ValueError("no closing ]")
    return tuple(items)


def typed_bool(value: bool) -> str:
    """Return the value as a user types it."""
    return "true" if value else "false"


def _read_number(scanner: Scanner) -> int:
    return parse_number(scanner.word())


def _read_bool(scanner: Scanner) -> bool:
    word = scanner.word()
    if word not in ("true", "false"):
        raise ValueError("must be true or false")
    return word == "true"


def _read_path(scanner: Scanner) -> str:
    value = scanner.string()
    if not value:
        raise ValueError("a file name is missing")
    return value


class Values:
    """The parsed value of one option: ``values[FIELD]`` has the type of the field."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}

    def __getitem__(self, field: Field[T]) -> T:
        # Stored by parse() under the same field, so it is what field.read returned.
        return cast("T", self._values.get(field.name, field.default))

    def __contains__(self, field: Field[T]) -> bool:
        return field.name in self._values

    def store(self, field: Field[T], value: T) -> None:
        """Store the value of ``field``. Raises ValueError if there is one already."""
        if field.name in self._values:
            raise ValueError("given twice")
        self._values[field.name] = value


def parse(option: str, text: str, fields: Sequence[Field[object]]) -> Values:
    """Parse the value of ``option``; the key of the first of ``fields`` may be left out.

    Raises:
        UsageError: with the option, the key, its value and what is wrong.
    """
    scanner = Scanner(text)
    values = Values()
    by_name = {name: field for field in fields for name in field.names}
    implied: Field[object] | None = fields[0]
    before: tuple[Field[object], int] | None = None  # the field before, and where its value starts
    while implied is not None or scanner.peek():
        key_at = scanner.at
        try:
            field, bare = _read_key(scanner, by_name, implied)
        except _UnknownKeyError as error:
            raise UsageError(f"{option}: {error}{_quotes(option, text, before, key_at)}") from None
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
        start = scanner.at
        try:
            values.store(field, True if bare else field.read(scanner))
            if not scanner.accept(",") and scanner.peek():
                raise ValueError(f"{scanner.text[scanner.at :]!r} after the value")
        except ValueError as error:
            raise UsageError(_explain(option, field, text[start:], error)) from None
        implied = None
        before = (field, start)
    for field in fields:
        if field.required and field not in values:
            raise UsageError(f"{option}: {field.name}={field.kind} is missing (in {text!r})")
    return values


class _UnknownKeyError(ValueError):
    """There is no known key here; perhaps this is the rest of a value with a comma."""


def _read_key(
    scanner: Scanner, by_name: dict[str, Field[object]], implied: Field[object] | None
) -> tuple[Field[object], bool]:
    """Read ``key=``, a key without a value, or nothing if the key is left out.

    Returns:
        The field, and whether it has no value.

    Raises:
        ValueError: the key is unknown or missing, or its value is missing.
    """
    start = scanner.at
    word = scanner.identifier()
    field = by_name.get(word.replace("_", "-"))
    if word and scanner.accept("="):
        if field is None:
            _refuse_key(word, by_name)
        return field, False
    if field is not None and scanner.at_separator():
        if not isinstance(field.default, bool):
            raise ValueError(f"{field.name} needs a value ({field.name}={field.kind})")
        return field, True
    if implied is not None:
        scanner.at = start
        return implied, False
    if word and scanner.at_separator():
        _refuse_key(word, by_name)
    raise _UnknownKeyError(f"no key at {scanner.text[start:]!r}")


def _refuse_key(word: str, by_name: dict[str, Field[object]]) -> NoReturn:
    near = suggestion(word, by_name)
    if near:
        raise ValueError(f"unknown key {word!r}{near}")
    known = ", ".join(name for name, field in by_name.items() if name == field.name)
    raise _UnknownKeyError(f"unknown key {word!r} (known: {known})")


def _quotes(option: str, text: str, before: tuple[Field[object], int] | None, key_at: int) -> str:
    """Return a hint on quotes, if the user may have meant a value that contains a comma."""
    if before is None or not before[0].is_text or text[before[1]] in ('"', "'"):
        return ""
    from shlex import quote

    field, start = before
    end = text.find(",", key_at)
    value = text[start : end if end >= 0 else len(text)]
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    written = quote(f'{field.name}="{value}"')
    return f"; a value with a comma needs quotes: {option} {written}"


def _explain(option: str, field: Field[object], rest: str, error: ValueError) -> str:
    value = rest if rest[:1] in ("[", '"', "'") else rest.partition(",")[0]
    return (
        f"{option}: {field.name}={value!r}: {error}"
        if value
        else f"{option}: {field.name}: {error}"
    )
