# SPDX-License-Identifier: BSD-3-Clause
"""Something that is wrong with a configuration."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# Status codes of the API (RFC 9110 §15.5, §15.6).
BAD: Final = 400
CONFLICT: Final = 409
FAILED: Final = 500


class Problem(NamedTuple):
    """A rule that a configuration breaks.

    ``status`` is the API's status code for it. ``place`` is the key, as in ``SchemaError``.
    """

    place: str
    text: str
    status: int = BAD

    def message(self) -> str:
        """Return one line for people."""
        return f"{self.place}: {self.text}" if self.place else self.text

    def chain(self) -> tuple[str, str]:
        """Return the causes as the API tells them, outermost first."""
        return f"{self.place} is invalid", self.text


def when(wrong: bool, place: str, text: str, status: int = BAD) -> Iterator[Problem]:
    """Return the problem if it is one."""
    if wrong:
        yield Problem(place, text, status)


def is_power_of_two(number: int) -> bool:
    """Return whether ``number`` is 1, 2, 4, …"""
    return number > 0 and not number & (number - 1)
