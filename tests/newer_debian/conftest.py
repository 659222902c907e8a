# SPDX-License-Identifier: BSD-3-Clause
"""One test host of the newer Debian for the session, and a folder in it for every test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.support import Lab
from tests.guests import newer
from tests.kvmhost.fixture import KvmHost, session

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: they all need the host."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def kvmhost() -> Iterator[KvmHost]:
    yield from session(newer.SUITE)


@pytest.fixture
def lab(kvmhost: KvmHost) -> Iterator[Lab]:
    """Where root runs crosvm."""
    lab = Lab(kvmhost, "root")
    yield lab
    lab.close()
