# SPDX-License-Identifier: BSD-3-Clause
"""Split a policy into statements: one line each, or several lines joined by a backslash."""

from __future__ import annotations

import re

from seccomp.errors import PolicyError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE_CHARACTERS: Final = 16 * 1024
_SHOWN_CHARACTERS: Final = 40

_TOKEN: Final = re.compile(
    r"(?P<blank>[ \t\r]+)"
    r"|(?P<comment>#.*)"
    r"|(?P<directive>@[a-z]+)"
    r"|(?P<word>kill-process|kill-thread|user-notify|-?[A-Za-z0-9_]+)"
    r"|(?P<symbol>\|\||&&|==|!=|<=|>=|[<>&|~(){},;:])",
    re.ASCII,
)


class Token(NamedTuple):
    """One word or symbol. ``kind`` is directive, word, symbol, path or end."""

    kind: str
    text: str
    path: str
    line: int

    def fail(self, problem: str) -> NoReturn:
        """Raise ``PolicyError`` that names this place and, unless the line ended, this word."""
        word = "" if self.kind == "end" else f" {shorten(self.text)}"
        raise PolicyError(f"{self.path}:{self.line}: {problem}{word}")


class Statement(NamedTuple):
    """The tokens of one logical line, the last of kind ``end``, and its text for people."""

    tokens: list[Token]
    text: str


def shorten(text: str) -> str:
    """Quote a word for a message: escape control characters, and cut a long word."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def statements(path: str, data: bytes) -> Iterator[Statement]:
    """Yield the statements of one file.

    Raises:
        PolicyError: the text is not UTF-8, has a character that no policy has or a line that is
            too long, or ends with a continuation.
    """
    tokens: list[Token] = []
    texts: list[str] = []
    number = 0
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = _decode(path, number, raw)
        continued = line.endswith("\\")
        line = line.removesuffix("\\")
        texts.append(line.partition("#")[0].strip())
        tokens += _tokenize(path, number, line)
        if continued:
            continue
        if tokens:
            yield Statement([*tokens, Token("end", "", path, number)], " ".join(texts).strip())
        tokens, texts = [], []
    if tokens or texts:
        raise PolicyError(f"{path}:{number}: the file ends in the middle of a statement")


def _decode(path: str, number: int, raw: bytes) -> str:
    if len(raw) > MAX_LINE_CHARACTERS:
        raise PolicyError(f"{path}:{number}: line longer than {MAX_LINE_CHARACTERS} characters")
    try:
        return raw.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}:{number}: byte {raw[error.start]:#04x} is not UTF-8") from error


def _tokenize(path: str, number: int, line: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None or match.lastgroup is None:
            Token("symbol", line[at], path, number).fail("unexpected character")
        at = match.end()
        if match.lastgroup == "blank" or match.lastgroup == "comment":
            continue
        tokens.append(Token(match.lastgroup, match.group(), path, number))
        if tokens[-1].text in ("@include", "@frequency"):
            words = line[at:].split(None, 1)
            if words and not words[0].startswith("#"):
                tokens.append(Token("path", words[0], path, number))
                line, at = words[1] if len(words) > 1 else "", 0
    return tokens
