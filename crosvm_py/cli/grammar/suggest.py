# SPDX-License-Identifier: BSD-3-Clause
"""Suggest what the user may have meant by an unknown word."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean …?" with the nearest known word, or "" if none is near.

    Leading dashes, and the difference between ``-`` and ``_``, are ignored.
    """
    # Imported here, because it takes milliseconds and correct command lines do not need it.
    import difflib

    by_letters = {_letters(name): name for name in known}
    close = difflib.get_close_matches(_letters(word), by_letters, 1)
    return f", did you mean {by_letters[close[0]]}?" if close else ""


def _letters(word: str) -> str:
    return word.lstrip("-").replace("_", "-").lower()
