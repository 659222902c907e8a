# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from collections.abc import Iterator

import pytest

from sys_util.guest_memory import GuestMemory
from tests.kernel_loader.images import RAM_BYTES


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, RAM_BYTES)])
    yield memory
    memory.close()
