# SPDX-License-Identifier: BSD-3-Clause
"""What the user may have meant by a word that nobody knows."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean …?" with the known word that is nearest, or nothing.

    Dashes in front of a word and the difference of ``-`` and ``_`` do not count.
    """
    # Here, and not above: it costs milliseconds, and a command line without a fault never needs it.
    import difflib

    by_letters = {_letters(name): name for name in known}
    close = difflib.get_close_matches(_letters(word), by_letters, 1)
    return f", did you mean {by_letters[close[0]]}?" if close else ""


def _letters(word: str) -> str:
    return word.lstrip("-").replace("_", "-").lower()
