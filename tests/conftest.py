# SPDX-License-Identifier: BSD-3-Clause
"""What is logged, for every test that looks at it or does not want it on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sys_util import log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def records() -> Iterator[list[tuple[int, str, str]]]:
    """Catch what is logged: level, module and text."""
    records: list[tuple[int, str, str]] = []
    log.set_sink(lambda level, module, text: records.append((level, module, text)))
    yield records
    log.set_sink(log.stderr_sink)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Catch what is logged: the text alone."""
    lines: list[str] = []
    log.set_sink(lambda _level, _module, text: lines.append(text))
    yield lines
    log.set_sink(log.stderr_sink)
