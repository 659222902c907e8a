# SPDX-License-Identifier: BSD-3-Clause
"""Read the words, strings and numbers of the key=value grammar."""

from __future__ import annotations

from sys_util.typing import Final

_SEPARATORS: Final = ",]"
_NOT_IN_WORDS: Final = ",[]\"'"
_RADIX: Final = {"0x": 16, "0o": 8, "0b": 2}
MAX_NUMBER: Final = 2**64 - 1


class Scanner:
    """A position in the text of one option's value. Its methods raise ValueError with a reason."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        """Return the next character, or "" at the end."""
        return self.text[self.at : self.at + 1]

    def at_separator(self) -> bool:
        """Return whether a value may end here."""
        return self.at >= len(self.text) or self.text[self.at] in _SEPARATORS

    def accept(self, character: str) -> bool:
        """Step over ``character`` if it is the next one."""
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def identifier(self) -> str:
        """Read a key or a choice: letters, digits, ``-`` and ``_``, not starting with ``-``."""
        start = self.at
        while (c := self.peek()) and (c.isalnum() or c == "_" or (c == "-" and self.at > start)):
            self.at += 1
        return self.text[start : self.at]

    def word(self) -> str:
        """Read up to the next separator; quotes and brackets before it are errors."""
        start = self.at
        while self.peek() and self.peek() not in _NOT_IN_WORDS:
            self.at += 1
        if not self.at_separator():
            raise ValueError(f"{self.peek()} must stand inside quotes")
        if self.at == start:
            raise ValueError("a value is missing")
        return self.text[start : self.at]

    def string(self) -> str:
        """Read a string in either kind of quotes, or a word."""
        quote = self.peek()
        if quote not in ('"', "'"):
            return self.word()
        self.at += 1
        result = ""
        while not self.accept(quote):
            if quote == '"' and self.accept("\\") and self.peek() not in ('"', "\\"):
                raise ValueError('only \\" and \\\\ are escapes in double quotes')
            if not self.peek():
                raise ValueError(f"no closing {quote}")
            result += self.peek()
            self.at += 1
        if not self.at_separator():
            raise ValueError(f"text after the closing {quote}")
        return result


def parse_number(text: str) -> int:
    """Return the unsigned 64-bit number in ``text``: decimal, or with 0x, 0o or 0b.

    Raises:
        ValueError: it is no such number. (``int`` would accept blanks, underscores and non-ASCII
            digits.)
    """
    radix = _RADIX.get(text[:2], 10)
    digits = text if radix == 10 else text[2:]
    # int() itself refuses only more than 4300 digits; 64 bits need far fewer.
    if not (digits.isascii() and digits.isalnum() and len(digits) <= 64):
        raise ValueError("not a number")
    try:
        number = int(digits, radix)
    except ValueError:
        raise ValueError("not a number") from None
    if number > MAX_NUMBER:
        raise ValueError(f"above the limit of {MAX_NUMBER}")
    return number


_SUFFIXES: Final = "kmgtpe"


def parse_size(text: str, unit_bytes: int) -> int:
    """Return a size in bytes: a number of ``unit_bytes``, or one with a suffix k, m, g, t, p or e.

    Raises:
        ValueError: it is no such number, or 64 bits cannot hold the bytes.
    """
    number = text.lower()
    if not number.startswith("0x") and number[-1:] and number[-1] in _SUFFIXES:
        unit_bytes = 1024 ** (1 + _SUFFIXES.index(number[-1]))
        number = number[:-1]
    try:
        size_bytes = parse_number(number) * unit_bytes
    except ValueError as error:
        raise ValueError(f"{error} (a size may have k, m, g or t behind its number)") from None
    if size_bytes > MAX_NUMBER:
        raise ValueError("more bytes than 64 bits can count")
    return size_bytes


def typed_size(size_bytes: int) -> str:
    """Return a size in bytes as a user would type it, with a suffix if it is a whole number."""
    for power in range(len(_SUFFIXES), 0, -1):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{_SUFFIXES[power - 1]}"
    return str(size_bytes)
