# SPDX-License-Identifier: BSD-3-Clause
"""The loop that consoles are attached to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()
