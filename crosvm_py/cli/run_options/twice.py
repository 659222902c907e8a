# SPDX-License-Identifier: BSD-3-Clause
"""Find values that several options of one command line have in common."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


def first_twice(values: Iterable[T | None]) -> T | None:
    """Return the first value that occurs a second time; ignore ``None`` and empty values."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            return value
        if value:
            seen.add(value)
    return None
