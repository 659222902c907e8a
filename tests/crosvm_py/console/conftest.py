# SPDX-License-Identifier: BSD-3-Clause
"""The loop that consoles are attached to, and a user at a terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.console import ends
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make a terminal our stdin and stdout, as the module sees them; yield the user's end."""
    user, program = os.openpty()
    monkeypatch.setattr(ends, "STDIN", program)
    monkeypatch.setattr(ends, "STDOUT", program)
    os.set_blocking(user, False)
    yield user
    os.close(user)
    os.close(program)
