# SPDX-License-Identifier: BSD-3-Clause
"""A device process that says what a test wants, before and after it says that it is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crosvm_py.hostile_device import READY, HostileDevice

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fresh() -> Iterator[HostileDevice]:
    """A device that has said nothing yet."""
    device = HostileDevice()
    yield device
    device.close()


@pytest.fixture
def device(fresh: HostileDevice) -> HostileDevice:
    """A device that is ready."""
    fresh.send(READY)
    fresh.turn()
    return fresh
