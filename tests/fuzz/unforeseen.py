# SPDX-License-Identifier: BSD-3-Clause
"""Errors that nobody foresaw end the peer that caused them in a VM; for a fuzzer they are finds."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sys_util import stranger

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def unforeseen_errors_are_finds() -> Iterator[None]:
    """Let what ``stranger.judged`` would report pass through everything as an error of the test."""
    report = stranger._report
    setattr(stranger, "_report", _raise)  # noqa: B010 - mypy knows it as a function
    try:
        yield
    finally:
        setattr(stranger, "_report", report)  # noqa: B010 - mypy knows it as a function


def _raise(what: str, error: Exception) -> None:
    raise AssertionError(f"{what}: {type(error).__name__}") from error
