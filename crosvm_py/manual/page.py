# SPDX-License-Identifier: BSD-3-Clause
"""Write one manual page in the macros of man(7)."""

from __future__ import annotations

from crosvm_py.version import VERSION
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SECTION: Final = 1
# When the pages changed last in what no table says. A page must not depend on when it is made.
DATE: Final = "2026-11-30"

_ESCAPES: Final = {"\\": "\\e", "-": "\\-", "…": "...", "^": "\\(ha", "~": "\\(ti", "`": "\\(ga"}


def roff(text: str) -> str:
    """Return one line of text, of which no character has a meaning for roff."""
    shown = "".join(_escape(c) for c in " ".join(text.split()))
    return f"\\&{shown}" if shown[:1] in (".", "'") else shown


def _escape(character: str) -> str:
    if character.isascii() or character in _ESCAPES:
        return _ESCAPES.get(character, character)
    return f"\\[u{ord(character):04X}]"


class Page:
    """A page that grows from its head to its end."""

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        title, program = roff(name).upper(), roff("crosvm-py")
        words = (title, str(SECTION), DATE, f"{program} {VERSION}", program)
        self._lines = [" ".join((".TH", *(f'"{word}"' for word in words)))]
        self.section("NAME")
        self._lines.append(f"{roff(name)} \\- {roff(about)}")

    def section(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f".SH {roff(title).upper()}")

    def part(self, title: str) -> None:
        """Begin a part of a section."""
        self._lines.append(f'.SS "{_quoted(title)}"')

    def text(self, text: str) -> None:
        """Add a paragraph."""
        if not text:
            return
        if not self._lines[-1].startswith((".SH", ".SS")):
            self._lines.append(".PP")
        self._lines.append(roff(text))

    def entry(self, term: str, text: str) -> None:
        """Add a term and what is to be said of it."""
        self._lines += [".TP", f'.B "{_quoted(term)}"', roff(text) or "\\&"]

    def entries_below(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Add a line, and entries that are indented more."""
        self._lines += [".RS", ".PP", roff(title)]
        for term, text in rows:
            self.entry(term, text)
        self._lines.append(".RE")

    def literal(self, lines: Iterable[str]) -> None:
        """Add lines as they are to be typed."""
        if not self._lines[-1].startswith((".SH", ".SS")):
            self._lines.append(".PP")
        self._lines += [".nf", ".RS", *(roff(line) for line in lines), ".RE", ".fi"]

    def finish(self, see_also: Iterable[str]) -> str:
        """Return the page, with references to other pages at its end."""
        names = sorted(set(see_also) - {self.name})
        if names:
            self.section("SEE ALSO")
            comma = ",\n"
            self._lines.append(comma.join(f".BR {roff(name)} ({SECTION})" for name in names))
        return "\n".join(self._lines).replace(")" + comma, ") ,\n") + "\n"


def _quoted(text: str) -> str:
    return roff(text).replace('"', "\\(dq")
